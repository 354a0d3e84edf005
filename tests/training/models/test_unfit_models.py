"""Models that do not fit a trainer (damaged, of another shape, too small for the clips) get one sentence each."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import DISTILL, TEACH, train

from annotators.weights import MissingWeights
from pipeline.errors import UsageError

pytestmark = pytest.mark.usefixtures("one_thread")

WEIGHTS = {
    "transformer": ("diffusion_pytorch_model.safetensors", "blocks.0.attn1.to_q.weight"),
    "vae": ("diffusion_pytorch_model.safetensors", "encoder.conv_in.weight"),
    "text_encoder": ("model.safetensors", "encoder.block.0.layer.0.SelfAttention.q.weight"),
}


def damage(part: Path, fault: str) -> None:
    """Remove something from a part of a model, or replace it."""
    from safetensors.torch import save_file

    name, weight = WEIGHTS[part.name]
    if fault == "gone":
        shutil.rmtree(part)
    elif fault == "no weights":
        (part / name).unlink()
    elif fault == "cut short":
        os.truncate(part / name, (part / name).stat().st_size // 2)
    else:
        weights = load_file(part / name)
        if fault == "a weight more":
            weights["another"] = torch.zeros(3)
        else:
            weights.pop(weight)
        if fault == "another shape":
            weights[weight] = torch.zeros(3, 3)
        save_file(weights, part / name, metadata={"format": "pt"})


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("gone", r"has no {part}/config\.json"),
        ("no weights", r"has no {part}/{file}: save it as safetensors"),
        ("a weight less", r"The {part} in .* lacks 1 of its weights, {weight} first"),
        ("another shape", r"The {part} in .* (cannot be loaded|has 1 weights of another shape, {weight})"),
        ("cut short", r"The {part} in .* cannot be loaded"),
    ],
)
def test_a_model_that_is_not_whole_is_refused_in_one_sentence(
    part: str,
    fault: str,
    message: str,
    model: Path,
    config: Any,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    damage(broken / part, fault)
    file, weight = WEIGHTS[part]
    with pytest.raises(MissingWeights, match=message.format(part=part, file=file, weight=weight)):
        train("distill", config(DISTILL, model={"folder": str(broken)}), tmp_path / "run")
    assert not (tmp_path / "run/log.jsonl").exists()
    assert capfd.readouterr().err == ""


def test_weights_of_a_larger_transformer_are_refused(model: Path, config: Any, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "more")
    damage(tmp_path / "more/transformer", "a weight more")
    with pytest.raises(MissingWeights, match="has 1 weights that its configuration does not describe, another first"):
        train("teach", config(TEACH, model={"folder": str(tmp_path / "more")}), tmp_path / "run")


def test_a_model_that_is_nowhere_is_named(config: Any, tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match="is neither a folder here nor a hub id"):
        train("distill", config(DISTILL, model={"folder": str(tmp_path / "nowhere")}), tmp_path / "run")


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("transformer", {"text_dim": 16}, r"takes text of 16 numbers .* gives 32 \(d_model\)"),
        ("transformer", {"in_channels": 36}, "transformer in .* has in_channels 36, and 16 is needed"),
        ("transformer", {"vace_in_channels": 100}, "has vace_in_channels 100, and 96 is needed"),
        ("transformer", {"patch_size": [1, 1, 1]}, r"has patch_size \[1, 1, 1\], and \[1, 2, 2\] is needed"),
        ("transformer", {"attention_head_dim": 13}, "transformer in .* cannot be loaded"),
        ("vae", {"z_dim": 48}, "vae in .* has z_dim 48, and 16 is needed"),
        ("vae", {"dim_mult": [1, 2]}, r"has dim_mult \[1, 2\], and 4 levels are needed"),
        ("vae", {"temperal_downsample": [True, True, True]}, "has temperal_downsample"),
        ("vae", {"latents_mean": [0.0]}, "has latents_mean .*: a number for each channel is needed"),
        ("vae", {"latents_std": [0.0] * 16}, "has latents_std .*: a number for each channel is needed"),
        ("text_encoder", {"d_model": 64}, r"takes text of 32 numbers .* gives 64 \(d_model\)"),
    ],
)
def test_a_teacher_of_the_wrong_shape_is_refused_before_anything_is_loaded(
    part: str, changes: dict[str, Any], message: str, model: Path, config: Any, tmp_path: Path
) -> None:
    changed_model = tmp_path / "other"
    shutil.copytree(model, changed_model)
    file = changed_model / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(MissingWeights, match=message):
        train("distill", config(DISTILL, model={"folder": str(changed_model)}), tmp_path / "run")
    if part == "transformer":
        with pytest.raises(MissingWeights, match=message):
            train("distill", config(DISTILL, model={"student": str(changed_model)}), tmp_path / "run")


def test_a_model_without_a_tokenizer_is_named(model: Path, config: Any, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "mute")
    shutil.rmtree(tmp_path / "mute/tokenizer")
    with pytest.raises(MissingWeights, match="mute has no tokenizer/: name one"):
        train("teach", config(TEACH, model={"folder": str(tmp_path / "mute")}), tmp_path / "run")


def test_a_size_beyond_the_networks_positions_is_named_before_anything_is_loaded(config: Any, tmp_path: Path) -> None:
    size = {"frames": 5, "height": 160000, "width": 160000}
    with pytest.raises(UsageError, match=r"has 32 positions a side .* takes \d x 10000 x 10000"):
        train("teach", config(TEACH, data={"size": size}), tmp_path / "run")


def test_a_tokenizer_of_another_vocabulary_is_named(model: Path, config: Any, tmp_path: Path) -> None:
    from transformers import UMT5Config, UMT5EncoderModel

    changed_model = tmp_path / "other"
    shutil.copytree(model, changed_model)
    UMT5EncoderModel(UMT5Config.from_pretrained(model / "text_encoder", vocab_size=2)).save_pretrained(
        changed_model / "text_encoder"
    )
    with pytest.raises(MissingWeights, match=r"tokenizer in .* has \d+ tokens, and the text encoder 2"):
        train("teach", config(TEACH, model={"folder": str(changed_model)}), tmp_path / "run")


def test_clips_beyond_the_networks_positions_are_named(model: Path, config: Any, tmp_path: Path) -> None:
    short = tmp_path / "short"
    shutil.copytree(model, short)
    file = short / "transformer/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rope_max_seq_len": 1}))
    with pytest.raises(
        UsageError, match=r"has 1 positions a side .rope_max_seq_len., and a clip .* takes \d x \d x \d"
    ):
        train("teach", config(TEACH, model={"folder": str(short)}), tmp_path / "run")
