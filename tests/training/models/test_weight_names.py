"""Conversion between the original VACE weight names and diffusers': both ways and complete."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_model
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import UsageError
from training.export import conversion
from training.models import networks, weight_names

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tiny_model.write(tmp_path_factory.mktemp("model"))
    return dict(networks.load(folder, torch.float32).state_dict())


def test_there_and_back(weights: dict[str, torch.Tensor]) -> None:
    original = weight_names.to_original(weights)
    assert len(original) == len(weights)
    assert weight_names.is_original(original)
    assert not weight_names.is_original(weights)
    restored = weight_names.to_diffusers(original)
    assert restored.keys() == weights.keys()
    assert all(torch.equal(restored[name], weights[name]) for name in weights)


def test_the_names_are_those_of_the_release(weights: dict[str, torch.Tensor]) -> None:
    original = weight_names.to_original(weights)
    for name in (
        "patch_embedding.weight", "vace_patch_embedding.bias", "text_embedding.2.weight", "time_projection.1.bias",
        "blocks.1.self_attn.norm_q.weight", "blocks.2.cross_attn.o.bias", "blocks.0.norm3.weight",
        "blocks.0.ffn.2.bias",
        "blocks.0.modulation", "vace_blocks.0.before_proj.weight", "vace_blocks.1.after_proj.bias", "head.head.weight",
        "head.modulation",
    ):  # fmt: skip
        assert name in original, name


def test_diffusers_reads_what_we_write(weights: dict[str, torch.Tensor]) -> None:
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    converted = convert_wan_transformer_to_diffusers(weight_names.to_original(weights))
    assert converted.keys() == weights.keys()
    assert all(torch.equal(converted[name], weights[name]) for name in weights)


def test_files_there_and_back(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    names = sorted(weights)
    parts = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for part, part_names in zip(parts, (names[::2], names[1::2]), strict=True):
        save_file({name: weights[name].contiguous() for name in part_names}, part)
    original, restored_file = tmp_path / "original.safetensors", tmp_path / "again.safetensors"
    conversion.convert(parts, original)
    assert weight_names.is_original(load_file(original))
    conversion.convert([original], restored_file)
    restored = load_file(restored_file)
    assert restored.keys() == weights.keys()
    assert all(torch.equal(restored[name], weights[name]) for name in weights)


def test_files_that_cannot_be_converted_leave_nothing(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    broken, foreign, out = tmp_path / "bad.safetensors", tmp_path / "other.safetensors", tmp_path / "out.safetensors"
    broken.write_bytes(b"no tensors")
    save_file({"lm_head.weight": torch.zeros(1)}, foreign)
    empty = tmp_path / "empty.safetensors"
    save_file({}, empty)
    for files, message in (
        ([broken], "cannot be read as safetensors"),
        ([foreign], r"other\.safetensors: 'lm_head\.weight' is not a weight of a VACE"),
        ([empty], r"empty\.safetensors holds no weights"),
        ([foreign, foreign], r"holds lm_head\.weight, which an earlier file holds too"),
    ):
        with pytest.raises(UsageError, match=message):
            conversion.convert(files, out)
    with pytest.raises(UsageError, match="exists already"):
        conversion.convert([foreign], broken)
    assert sorted(tmp_path.iterdir()) == [broken, empty, foreign]


def test_a_name_of_something_else_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'lm_head\.weight' is not a weight of a VACE"):
        weight_names.to_diffusers({"lm_head.weight": torch.zeros(1)})
