"""What a step of distillation takes at a model's true shape: time, peak memory, share of the device's matrix rate, and
transport's share of the time, with random weights and latents.

Operations are counted on the network's shape alone (no device computes them): forward passes, and backward passes with
what they need of a frozen network; what activation checkpointing computes again is not counted. The matrix rate is that
of a large product of the same kind of numbers, measured in the same run.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.training.ot import named, peak, predictions
from pipeline.errors import UsageError
from pipeline.mixture.mixture import Bucket
from training.config import Data, Distill, Model, load
from training.diffusion import seeded_random
from training.distributed import world
from training.encoding.examples import Example
from training.models import assemble
from training.models import networks as models
from training.models.assemble import Networks
from training.models.folder import TRANSFORMER
from training.models.networks import STUDENT, Conditions
from training.objectives import ot
from training.trainer import memory_estimate
from training.trainer.distill import Distillation
from training.trainer.metrics import Signals

# Of the latents and of a token: Wan 2.1's autoencoder and the transformers below.
_LATENT, _CONTEXT = 16, 96
# The side of the product that a device's matrix rate is measured by, and how often it is repeated.
_SIDE, _PRODUCTS = {"cuda": 8192, "cpu": 1024}, 20


@dataclass(frozen=True, slots=True)
class Shape:
    """A VACE transformer: what its configuration says beside what all of them share."""

    num_attention_heads: int
    attention_head_dim: int
    ffn_dim: int
    num_layers: int
    vace_layers: tuple[int, ...]
    text_dim: int = 4096
    in_channels: int = _LATENT
    out_channels: int = _LATENT
    vace_in_channels: int = _CONTEXT


# [config.json of Wan-AI/Wan2.1-VACE-1.3B-diffusers and -14B-diffusers]
SHAPES = {
    "vace-1.3b": Shape(12, 128, 8960, 30, tuple(range(0, 30, 2))),
    "vace-14b": Shape(40, 128, 13824, 40, tuple(range(0, 40, 5))),
    # For tests.
    "tiny": Shape(2, 12, 48, 2, (0,), text_dim=16),
}


def measure(config: Path, name: str, size: tuple[int, int, int], updates: int) -> dict[str, Any]:
    """So many updates of the student of a configuration, with what comes between them, by a network of the shape `name`
    with one clip of frames, height and width.

    Raises UsageError for sizes that Wan's autoencoder does not know.
    """
    frames, height, width = size
    if name not in SHAPES or frames % 4 != 1 or height % 16 or width % 16:
        raise UsageError(f"shapes are {', '.join(SHAPES)}; a clip has 4n + 1 frames and sides that are multiples of 16")
    told = load(config, Distill)
    bucket = Bucket("benchmark", "depth", frames, height, width, 0)
    with world() as here, tempfile.TemporaryDirectory(prefix="vdot-step-") as temporary:
        folder = Path(temporary)
        _write(SHAPES[name], folder, assemble.kind(told.model))
        # What comes later in a run is there from the first step on.
        gan = None if told.gan is None else told.gan.model_copy(update={"start": 0})
        made = told.model_copy(
            update={
                "model": Model(**told.model.model_dump() | {"folder": temporary}),
                "data": Data(mixture="benchmark"),
                "gan": gan,
            }
        )
        planned = memory_estimate.sized(made, folder, bucket, 1, 1)
        example = _example(bucket, SHAPES[name], told.model.text_tokens, here.device)
        flops = {kind: _flops(SHAPES[name], told, example, kind == "learnt") for kind in ("passed", "learnt")}
        networks = assemble.distillation(made, folder, here)
        loop = Distillation(made, networks, torch.zeros_like(example.conditions.text))
        rate = _matrix_rate(here.device, assemble.kind(told.model))
        # The first update of the student, and the steps of the critic that go with it, prepare the others.
        steps = [_step(loop, number, example, networks) for number in range(told.student_every * (updates + 1))]
        for step in steps:
            step["flop"] = step.pop("passed") * flops["passed"] + step.pop("learnt") * flops["learnt"]
        every, steps = told.student_every, steps[told.student_every :]
        whole, alone = _typical(steps, rate), [step for at, step in enumerate(steps) if at % every]
        transport = _transport(told, bucket, here.device)
        return {
            "device": named(here.device),
            "torch": torch.__version__,
            "config": config.name,
            "shape": {"name": name, **asdict(SHAPES[name])},
            "clip": size,
            "lora_rank": told.model.lora_rank,
            "matrix_tflop_per_s": round(rate / 1e12, 2),
            "flop_a_forward_pass": flops["passed"],
            "flop_a_learnt_pass": flops["learnt"],
            "steps": whole,
            "with_student": _typical(steps[::every], rate),
            "critic_alone": _typical(alone, rate) if alone else None,
            "peak_bytes": max(step["peak_bytes"] for step in steps),
            "transport_s": transport,
            "transport_share": None if transport is None else round(transport / every / whole["s"], 5),
            "planned_bytes": round(planned.total - memory_estimate.BESIDES),
        }


def _write(shape: Shape, folder: Path, dtype: torch.dtype) -> None:
    """A model's transformer with random weights."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        _network(shape).save_pretrained(folder / TRANSFORMER, safe_serialization=True)
    finally:
        torch.set_default_dtype(before)


def _network(shape: Shape) -> Any:
    from diffusers import WanVACETransformer3DModel

    return WanVACETransformer3DModel(**asdict(shape) | {"vace_layers": list(shape.vace_layers)})


def _example(bucket: Bucket, shape: Shape, tokens: int, device: torch.device) -> Example:
    sides = (bucket.frames + 2) // 4 + 1, bucket.height // 8, bucket.width // 8

    def random(name: str, *size: int) -> Tensor:
        return seeded_random.normal(size, device, 0, name)

    conditions = Conditions(random("text", 1, tokens, shape.text_dim), random("context", 1, _CONTEXT, *sides))
    return Example(0, bucket, random("clean", 1, _LATENT, *sides), conditions)


def _flops(shape: Shape, config: Distill, example: Example, learnt: bool) -> int:
    """Operations of one pass of a clip, and of its backward pass where something is learnt by it."""
    with torch.device("meta"):
        network = _network(shape).requires_grad_(config.model.lora_rank is None)
        if config.model.lora_rank is not None:
            network = models.adapted(network, config.model.lora_rank, [STUDENT])
    counter = FlopCounterMode(display=False)
    with counter, torch.set_grad_enabled(learnt):
        said = network(
            hidden_states=example.clean.to("meta"),
            timestep=torch.ones(1, device="meta"),
            encoder_hidden_states=example.conditions.text.to("meta"),
            control_hidden_states=example.conditions.context.to("meta"),
            return_dict=False,
        )[0]
        if learnt:
            said.sum().backward()
    return int(counter.get_total_flops())


def _step(loop: Distillation, number: int, example: Example, networks: Networks) -> dict[str, Any]:
    """Time and peak memory of a step, and how many passes of a network it took."""
    device = example.clean.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begun = _now(device)
    # With adapters all three are one network.
    with _counted({one.transformer for one in (networks.student, networks.fake, networks.teacher)}) as counts:
        loop.step(number, [example], Signals())
    return {"s": _now(device) - begun, "peak_bytes": peak(device), **counts}


def _typical(steps: list[dict[str, Any]], rate: float) -> dict[str, Any]:
    """Of a step: rollouts end at random steps, so that no two steps do the same, and others may use the machine. So it
    is told how fast steps go, as the median, and how long what they do on average takes at that speed."""
    speed = statistics.median(step["flop"] / step["s"] for step in steps)
    flop = statistics.mean(step["flop"] for step in steps)
    return {
        "s": round(flop / speed, 4),
        "all_s": [round(step["s"], 4) for step in steps],
        "useful_flop": round(flop),
        "share_of_matrix_rate": round(speed / rate, 4),
    }


@contextmanager
def _counted(networks: set[Any]) -> Iterator[dict[str, int]]:
    """Counts passes through networks: those whose result can be learnt by, and the others."""
    counts = {"passed": 0, "learnt": 0}

    def hook(_network: Any, _given: Any, made: Any) -> None:
        counts["learnt" if made[0].requires_grad else "passed"] += 1

    hooks = [network.register_forward_hook(hook) for network in networks]
    try:
        yield counts
    finally:
        for one in hooks:
            one.remove()


def _matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of large matrix products."""
    side = _SIDE[device.type]
    one = torch.randn(side, side, device=device).to(dtype)
    one @ one
    begun = _now(device)
    for _ in range(_PRODUCTS):
        one @ one
    return 2 * side**3 * _PRODUCTS / (_now(device) - begun)


def _transport(config: Distill, bucket: Bucket, device: torch.device) -> float | None:
    """Seconds of the transport's gradient of one clip, where there is one."""
    if config.transport is None:
        return None
    frames, side = (bucket.frames + 2) // 4 + 1, (bucket.height // 16, bucket.width // 16)
    fake, real = (one.to(device) for one in predictions(frames, side, _LATENT, 1.0))
    times = []
    for _ in range(3):
        begun = _now(device)
        ot.transported(fake, real, config.transport)
        times.append(_now(device) - begun)
    return round(min(times), 4)


def _now(device: torch.device) -> float:
    """The time at which everything that was asked of a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
