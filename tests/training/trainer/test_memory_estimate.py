"""`vdot-train plan`: memory is estimated without loading anything, and a run that cannot fit is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import DISTILL, TEACH

import training
from benchmarks.training.step import SHAPES
from pipeline.errors import UsageError
from pipeline.mixture.mixture import Bucket
from training import commands
from training.config import Distill, Teach, load
from training.models import networks
from training.trainer import memory_estimate
from training.trainer.memory_estimate import Part

pytestmark = pytest.mark.usefixtures("one_thread")


def parts(file: Path, *, teaching: bool = False, devices: int = 1) -> dict[str, float]:
    return {part.name: part.size for part in commands.plan_memory(file, teaching, devices).parts}


def test_weights_are_counted_exactly_and_shared_by_devices(model: Path, config: Any) -> None:
    parameters = sum(parameter.numel() for parameter in networks.load(model, torch.float32).parameters())
    single, double = parts(config(DISTILL)), parts(config(DISTILL), devices=2)
    # Student and fake score: weight, gradient and two moments, float32; the EMA, and the weights that it replaces.
    assert single["trained networks"] == 2 * 16 * parameters
    assert single["moving average"] == 2 * 4 * parameters
    assert single["teacher"] == 4 * parameters
    assert double["trained networks"] == single["trained networks"] / 2
    # The host holds one network at a time, for any number of devices.
    assert commands.plan_memory(config(DISTILL), False, 2).host == 4 * parameters
    assert parts(config(TEACH), teaching=True)["trained networks"] == 16 * parameters


def test_adapters_are_counted_as_they_are_made(model: Path, config: Any) -> None:
    adapted = networks.add_adapters(networks.load(model, torch.float32), 4)
    adapters = sum(
        parameter.numel() for name, parameter in adapted.named_parameters() if f".{networks.STUDENT}." in name
    )
    sizes = parts(config(DISTILL, model={"lora_rank": 4}))
    assert sizes["adapters"] == adapters * (2 * 16 + 4)
    assert "trained networks" not in sizes
    bfloat16_config = config(DISTILL, model={"lora_rank": 4, "dtype": "bfloat16"})
    assert commands.plan_memory(bfloat16_config, False, 1).host == 2 * sum(
        parameter.numel() for parameter in networks.init_random(model).parameters()
    )


@pytest.mark.parametrize("rank", [None, 16])
def test_what_a_block_computes_is_counted_as_autograd_keeps_it(
    rank: int | None, model: Path, config: Any, tmp_path: Path
) -> None:
    from diffusers import WanVACETransformer3DModel

    sizes = {"num_attention_heads": 4, "attention_head_dim": 64, "ffn_dim": 1024, "text_dim": 32, "freq_dim": 64}
    network = WanVACETransformer3DModel(**sizes, num_layers=1, vace_layers=[0], vace_in_channels=96)
    wide = tmp_path / "wide"
    shutil.copytree(model, wide)
    network.save_config(wide / "transformer")
    config_file = config(DISTILL, model={"folder": str(wide), "dtype": "bfloat16", "lora_rank": rank}, gan=None)
    if rank is not None:
        network = networks.add_adapters(network.bfloat16().requires_grad_(False), rank, ["student"])
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    saved: dict[int, int] = {}
    alive = []
    in_block = False

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if in_block and storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    def enter(*_: Any) -> None:
        nonlocal in_block
        in_block = True

    def leave(*_: Any) -> None:
        nonlocal in_block
        in_block = False

    network.blocks[0].register_forward_pre_hook(enter)
    network.blocks[0].register_forward_hook(leave)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        network(
            hidden_states=torch.randn(1, 16, 4, 32, 32),
            timestep=torch.ones(1),
            encoder_hidden_states=torch.randn(1, 8, 32).bfloat16(),
            control_hidden_states=torch.randn(1, 96, 4, 32, 32).bfloat16(),
            return_dict=False,
        )
    bucket = Bucket("films", "depth", 13, 256, 256, 0)
    assert bucket.tokens == 1024
    estimated = {
        part.name: part.size
        for part in memory_estimate.estimate_bucket(load(config_file, Distill), wide, bucket, 1, 1).parts
    }
    assert estimated["one block at work"] == pytest.approx(sum(saved.values()), rel=0.1)


@pytest.mark.parametrize(
    ("config_name", "shape", "devices", "fits"),
    [
        ("vace-1.3b-lora", "vace-1.3b", 1, True),
        ("vace-1.3b", "vace-1.3b", 4, True),
        ("vace-1.3b", "vace-1.3b", 2, False),
        ("vace-1.3b-teach", "vace-1.3b", 1, True),
        ("vace-14b-lora", "vace-14b", 8, True),
        ("vace-14b-lora", "vace-14b", 1, False),
    ],
)
def test_the_ready_configurations_need_as_many_gpus_as_they_say(
    config_name: str, shape: str, devices: int, fits: bool, tmp_path: Path
) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer/config.json").write_text(json.dumps(asdict(SHAPES[shape])))
    file = Path(training.__path__[0]) / f"configs/{config_name}.yaml"
    settings = load(file, Teach) if "teach" in config_name else load(file, Distill)
    plan = memory_estimate.estimate_bucket(settings, tmp_path, Bucket("films", "depth", 81, 480, 832, 0), 1, devices)
    with nullcontext() if fits else pytest.raises(UsageError, match=rf"on each of {devices} devices"):
        plan.check_fits(80e9)


@pytest.mark.long
def test_what_cannot_fit_is_refused_before_anything_is_loaded(model: Path, config: Any, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    shutil.copytree(model, empty)
    # Loading would fail.
    (empty / "transformer/diffusion_pytorch_model.safetensors").unlink()
    file = config(DISTILL, model={"folder": str(empty)})
    plan = commands.plan_memory(file, False, 1)
    plan.check_fits(plan.total / 0.9)
    with pytest.raises(UsageError, match=r"which have .* GB.*No run fits into so little"):
        plan.check_fits(plan.total)
    larger = replace(plan, parts=(*plan.parts, Part("activations kept", 9e9, "of longer clips")))
    with pytest.raises(UsageError, match=r"the most goes to activations kept \(9\.0 GB\).*`model\.lora_rank`"):
        larger.check_fits(larger.total)
    result = subprocess.run(
        [sys.executable, "-m", "training.cli", "plan", str(file), "--json", "--memory-gb", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "this needs" in result.stderr
    assert json.loads(result.stdout)["bytes"] == round(plan.total)
