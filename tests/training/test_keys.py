"""Original VACE names of weights and diffusers': both ways, none lost."""

from __future__ import annotations

import pytest
import tiny_model
import torch

from pipeline.errors import UsageError
from training import keys, models

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tiny_model.write(tmp_path_factory.mktemp("model"))
    return dict(models.load(folder, torch.float32).state_dict())


def test_there_and_back(weights: dict[str, torch.Tensor]) -> None:
    theirs = keys.to_original(weights)
    assert len(theirs) == len(weights)
    assert keys.original(theirs)
    assert not keys.original(weights)
    again = keys.to_diffusers(theirs)
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weights[name]) for name in weights)


def test_the_names_are_those_of_the_release(weights: dict[str, torch.Tensor]) -> None:
    theirs = keys.to_original(weights)
    for name in (
        "patch_embedding.weight", "vace_patch_embedding.bias", "text_embedding.2.weight", "time_projection.1.bias",
        "blocks.1.self_attn.norm_q.weight", "blocks.2.cross_attn.o.bias", "blocks.0.norm3.weight",
        "blocks.0.ffn.2.bias",
        "blocks.0.modulation", "vace_blocks.0.before_proj.weight", "vace_blocks.1.after_proj.bias", "head.head.weight",
        "head.modulation",
    ):  # fmt: skip
        assert name in theirs, name


def test_diffusers_reads_what_we_write(weights: dict[str, torch.Tensor]) -> None:
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    found = convert_wan_transformer_to_diffusers(keys.to_original(weights))
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_a_name_of_something_else_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'lm_head\.weight' is no weight of a VACE"):
        keys.to_diffusers({"lm_head.weight": torch.zeros(1)})
