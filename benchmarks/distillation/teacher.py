"""The teacher: a small VACE transformer that learns the clips by flow matching, and samples of it and of students."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.distillation.arms import DATA, MODEL
from benchmarks.distillation.corpus import TEXT_DIM, Corpus
from benchmarks.distillation.single import write
from benchmarks.distillation.sizes import Size
from training.config import Average, Optimizer, Teach
from training.diffusion import seeded_random
from training.diffusion.schedule import Schedule
from training.distributed import World
from training.models import folder as model_folder
from training.models import networks
from training.models.networks import Conditions, Denoiser
from training.sampling.rollout import integrate, rollout
from training.trainer.metrics import Signals
from training.trainer.teach import Teaching

# The share of captions that it learns without, which guidance needs.
_DROPPED = 0.15
_SHIFT = 5.0


def taught(size: Size, corpus: Corpus, folder: Path, device: torch.device, say: Callable[[str], None]) -> Denoiser:
    """The teacher of a folder in diffusers' layout; where there is none yet it is trained and put there."""
    place = folder / "teacher"
    if not place.is_dir():
        _train(size, corpus, place, device, say)
    return Denoiser(networks.load(place, torch.float32).to(device), torch.float32)


def _train(size: Size, corpus: Corpus, place: Path, device: torch.device, say: Callable[[str], None]) -> None:
    torch.manual_seed(0)
    config = Teach(
        model=MODEL,
        data=DATA,
        steps=size.teacher_steps,
        average=Average(decay=0.995, start=size.teacher_steps // 4),
        optimizer=Optimizer(lr=size.teacher_lr, betas=(0.9, 0.99), clip=1.0, warmup=min(50, size.teacher_steps // 4)),
        shift=_SHIFT,
    )
    teaching = Teaching(config, Denoiser(_scratch(size).to(device), torch.float32))
    begun, losses = time.perf_counter(), []
    tenth = max(1, size.teacher_steps // 10)
    signals = Signals()
    for step in range(size.teacher_steps):
        teaching.step(step, [corpus.example(0, step, size.teacher_batch, _DROPPED)], signals)
        if (step + 1) % tenth == 0:
            means, signals = signals.means(World(0, 1, device)), Signals()
            losses.append({"step": step + 1, **{name: round(value, 4) for name, value in means.items()}})
            say(f"teacher: step {step + 1}, loss {means['student/loss']:.3f}, {time.perf_counter() - begun:.0f} s")
    beside = place.with_name("teacher.making")
    shutil.rmtree(beside, ignore_errors=True)
    with teaching.average.worn():
        teaching.student.transformer.save_pretrained(beside / model_folder.TRANSFORMER)
    write(beside / "training.json", {"s": round(time.perf_counter() - begun, 1), "losses": losses})
    beside.replace(place)


def _scratch(size: Size) -> Any:
    """Random weights, whose VACE branch at first adds nothing, as `models.scratch` makes of a folder."""
    from diffusers import WanVACETransformer3DModel

    width = 32 * size.heads
    made = WanVACETransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=size.heads,
        attention_head_dim=32,
        in_channels=16,
        out_channels=16,
        text_dim=TEXT_DIM,
        freq_dim=64,
        ffn_dim=4 * width,
        num_layers=size.layers,
        vace_layers=list(size.vace),
        vace_in_channels=96,
        rope_max_seq_len=64,
    )
    return networks.silenced(made).eval()


class Sampler:
    """Samples of the clips of a corpus; the noise of each follows from a seed and its place alone."""

    def __init__(self, size: Size, corpus: Corpus) -> None:
        self._size, self._corpus = size, corpus

    def main(self, make: Callable[[Conditions, int, str], Tensor], seed: int) -> Tensor:
        """One sample for each clip: latents on the CPU."""
        return self._of(list(range(len(self._corpus))), make, seed, "main")

    def diverse(self, make: Callable[[Conditions, int, str], Tensor], seed: int) -> Tensor:
        """Several samples for each of the first clips: [conditions, seeds, ...]."""
        conditions, seeds = self._size.diversity
        rows = [row for row in range(conditions) for _ in range(seeds)]
        return self._of(rows, make, seed, "diverse").unflatten(0, (conditions, seeds))

    def _of(self, rows: Sequence[int], make: Callable[[Conditions, int, str], Tensor], seed: int, what: str) -> Tensor:
        some = range(0, len(rows), self._size.chunk)
        made = [make(self._corpus.asked(rows[at : at + self._size.chunk]), seed, f"{what} {at}").cpu() for at in some]
        return torch.cat(made)


def few(network: Denoiser, schedule: Schedule) -> Callable[[Conditions, int, str], Tensor]:
    """Samples in a student's few steps, without guidance."""

    def make(conditions: Conditions, seed: int, what: str) -> Tensor:
        def noise(step: int) -> Tensor:
            return seeded_random.normal(conditions.shape, conditions.context.device, seed, "sample", what, step)

        return rollout(network, conditions, schedule, noise)

    return make


def many(network: Denoiser, empty: Tensor, steps: int, cfg: float) -> Callable[[Conditions, int, str], Tensor]:
    """Samples of a teacher, guided, in so many steps of Euler's method."""

    def make(conditions: Conditions, seed: int, what: str) -> Tensor:
        noise = seeded_random.normal(conditions.shape, conditions.context.device, seed, "sample", what, 0)
        return integrate(network, conditions, empty, noise, steps=steps, shift=_SHIFT, cfg=cfg)

    return make
