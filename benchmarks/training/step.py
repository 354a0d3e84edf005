"""Measures a step of distillation at a model's true shape, with random weights and latents.

It measures time, peak memory, the share of the device's matrix rate, and transport's share of the time. Operations are
counted from the network's shape alone (no device computes them): forward passes, and backward passes with what they
need of a frozen network; what activation checkpointing computes again is not counted. The matrix rate is that of a
large product of the same kind of numbers, measured in the same run.
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

from benchmarks.training.ot import describe_device, peak_memory, predictions
from pipeline.errors import UsageError
from pipeline.mixture.mixture import Bucket
from training.config import Data, Distill, Model, load
from training.diffusion import seeded_random
from training.distributed import join_world
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

# Channels of the latents and of the context: Wan 2.1's autoencoder and the transformers below.
_LATENT, _CONTEXT = 16, 96
# The side of the matrices whose product measures a device's matrix rate, and the number of products.
_SIDE, _PRODUCTS = {"cuda": 8192, "cpu": 1024}, 20


@dataclass(frozen=True, slots=True)
class Shape:
    """The fields of a VACE transformer's configuration that differ between models."""

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
    """Measure `updates` updates of a configuration's student and the critic's steps between them, with a network of the
    shape `name` and one clip of frames, height and width.

    Raises UsageError for sizes that Wan's autoencoder does not support.
    """
    frames, height, width = size
    if name not in SHAPES or frames % 4 != 1 or height % 16 or width % 16:
        raise UsageError(f"shapes are {', '.join(SHAPES)}; a clip has 4n + 1 frames and sides that are multiples of 16")
    settings = load(config, Distill)
    bucket = Bucket("benchmark", "depth", frames, height, width, 0)
    with join_world() as process, tempfile.TemporaryDirectory(prefix="vdot-step-") as temporary:
        folder = Path(temporary)
        _save_transformer(SHAPES[name], folder, assemble.compute_dtype(settings.model))
        # The discriminator, which starts later in a run, works from the first step.
        gan = None if settings.gan is None else settings.gan.model_copy(update={"start": 0})
        run_settings = settings.model_copy(
            update={
                "model": Model(**settings.model.model_dump() | {"folder": temporary}),
                "data": Data(mixture="benchmark"),
                "gan": gan,
            }
        )
        planned = memory_estimate.estimate_bucket(run_settings, folder, bucket, 1, 1)
        example = _build_example(bucket, SHAPES[name], settings.model.text_tokens, process.device)
        flops = {kind: _count_flops(SHAPES[name], settings, example, kind == "learnt") for kind in ("passed", "learnt")}
        networks = assemble.build_distillation(run_settings, folder, process)
        loop = Distillation(run_settings, networks, torch.zeros_like(example.conditions.text))
        rate = _measure_matrix_rate(process.device, assemble.compute_dtype(settings.model))
        # The first update of the student and the critic's steps that belong to it are a warm-up.
        steps = [
            _time_step(loop, number, example, networks) for number in range(settings.student_every * (updates + 1))
        ]
        for step in steps:
            step["flop"] = step.pop("passed") * flops["passed"] + step.pop("learnt") * flops["learnt"]
        period, steps = settings.student_every, steps[settings.student_every :]
        summary, critic_steps = _summarize(steps, rate), [step for index, step in enumerate(steps) if index % period]
        transport = _time_transport(settings, bucket, process.device)
        return {
            "device": describe_device(process.device),
            "torch": torch.__version__,
            "config": config.name,
            "shape": {"name": name, **asdict(SHAPES[name])},
            "clip": size,
            "lora_rank": settings.model.lora_rank,
            "matrix_tflop_per_s": round(rate / 1e12, 2),
            "flop_a_forward_pass": flops["passed"],
            "flop_a_learnt_pass": flops["learnt"],
            "steps": summary,
            "with_student": _summarize(steps[::period], rate),
            "critic_alone": _summarize(critic_steps, rate) if critic_steps else None,
            "peak_bytes": max(step["peak_bytes"] for step in steps),
            "transport_s": transport,
            "transport_share": None if transport is None else round(transport / period / summary["s"], 5),
            "planned_bytes": round(planned.total - memory_estimate.OVERHEAD),
        }


def _save_transformer(shape: Shape, folder: Path, dtype: torch.dtype) -> None:
    """Save a model's transformer with random weights."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        _build_network(shape).save_pretrained(folder / TRANSFORMER, safe_serialization=True)
    finally:
        torch.set_default_dtype(before)


def _build_network(shape: Shape) -> Any:
    from diffusers import WanVACETransformer3DModel

    return WanVACETransformer3DModel(**asdict(shape) | {"vace_layers": list(shape.vace_layers)})


def _build_example(bucket: Bucket, shape: Shape, tokens: int, device: torch.device) -> Example:
    sides = (bucket.frames + 2) // 4 + 1, bucket.height // 8, bucket.width // 8

    def random(name: str, *size: int) -> Tensor:
        return seeded_random.normal(size, device, 0, name)

    conditions = Conditions(random("text", 1, tokens, shape.text_dim), random("context", 1, _CONTEXT, *sides))
    return Example(0, bucket, random("clean", 1, _LATENT, *sides), conditions)


def _count_flops(shape: Shape, config: Distill, example: Example, learnt: bool) -> int:
    """Operations of one forward pass of a clip, and of the backward pass if `learnt`."""
    with torch.device("meta"):
        network = _build_network(shape).requires_grad_(config.model.lora_rank is None)
        if config.model.lora_rank is not None:
            network = models.add_adapters(network, config.model.lora_rank, [STUDENT])
    counter = FlopCounterMode(display=False)
    with counter, torch.set_grad_enabled(learnt):
        output = network(
            hidden_states=example.clean.to("meta"),
            timestep=torch.ones(1, device="meta"),
            encoder_hidden_states=example.conditions.text.to("meta"),
            control_hidden_states=example.conditions.context.to("meta"),
            return_dict=False,
        )[0]
        if learnt:
            output.sum().backward()
    return int(counter.get_total_flops())


def _time_step(loop: Distillation, number: int, example: Example, networks: Networks) -> dict[str, Any]:
    """Time and peak memory of a step, and its number of network passes."""
    device = example.clean.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = _wait_and_read_clock(device)
    # With adapters all three share one network.
    with _count_passes(
        {denoiser.transformer for denoiser in (networks.student, networks.fake, networks.teacher)}
    ) as counts:
        loop.step(number, [example], Signals())
    return {"s": _wait_and_read_clock(device) - started, "peak_bytes": peak_memory(device), **counts}


def _summarize(steps: list[dict[str, Any]], rate: float) -> dict[str, Any]:
    """Summarize steps by their median speed, and by the time that their mean work takes at that speed.

    Rollouts end at random steps, so that no two steps do the same work, and other programs may use the machine.
    """
    speed = statistics.median(step["flop"] / step["s"] for step in steps)
    flop = statistics.mean(step["flop"] for step in steps)
    return {
        "s": round(flop / speed, 4),
        "all_s": [round(step["s"], 4) for step in steps],
        "useful_flop": round(flop),
        "share_of_matrix_rate": round(speed / rate, 4),
    }


@contextmanager
def _count_passes(networks: set[Any]) -> Iterator[dict[str, int]]:
    """Count passes through networks: `learnt` if the output requires a gradient, otherwise `passed`."""
    counts = {"passed": 0, "learnt": 0}

    def hook(_build_network: Any, _inputs: Any, outputs: Any) -> None:
        counts["learnt" if outputs[0].requires_grad else "passed"] += 1

    hooks = [network.register_forward_hook(hook) for network in networks]
    try:
        yield counts
    finally:
        for handle in hooks:
            handle.remove()


def _measure_matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of large matrix products."""
    side = _SIDE[device.type]
    matrix = torch.randn(side, side, device=device).to(dtype)
    matrix @ matrix
    started = _wait_and_read_clock(device)
    for _ in range(_PRODUCTS):
        matrix @ matrix
    return 2 * side**3 * _PRODUCTS / (_wait_and_read_clock(device) - started)


def _time_transport(config: Distill, bucket: Bucket, device: torch.device) -> float | None:
    """Seconds of the transport's gradient of one clip, or None without transport."""
    if config.transport is None:
        return None
    frames, side = (bucket.frames + 2) // 4 + 1, (bucket.height // 16, bucket.width // 16)
    fake, real = (latents.to(device) for latents in predictions(frames, side, _LATENT, 1.0))
    times = []
    for _ in range(3):
        started = _wait_and_read_clock(device)
        ot.compute_transport(fake, real, config.transport)
        times.append(_wait_and_read_clock(device) - started)
    return round(min(times), 4)


def _wait_and_read_clock(device: torch.device) -> float:
    """Wait for the device to finish its work, then read the clock."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
