"""Trains the teacher, a small VACE transformer, by flow matching, and samples from teacher and students."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.distillation.arms import DATA, MODEL
from benchmarks.distillation.corpus import TEXT_DIM, Corpus
from benchmarks.distillation.json_files import write_json
from benchmarks.distillation.sizes import Size
from pipeline.storage.atomic import new_folder
from training.config import EMA, Optimizer, Teach
from training.diffusion import seeded_random
from training.diffusion.schedule import Schedule
from training.distributed import World
from training.models import folder as model_folder
from training.models import networks
from training.models.networks import Conditions, Denoiser
from training.sampling.rollout import integrate, rollout
from training.trainer.metrics import Signals
from training.trainer.teach import Teaching

# The share of captions left out in training, which guidance needs.
_DROPPED_CAPTIONS = 0.15
_SHIFT = 5.0


def load_teacher(
    size: Size, corpus: Corpus, folder: Path, device: torch.device, log: Callable[[str], None]
) -> Denoiser:
    """The teacher in a folder, in diffusers' layout; trained and saved there first if it does not exist yet."""
    target = folder / "teacher"
    if not target.is_dir():
        _train(size, corpus, target, device, log)
    return Denoiser(networks.load(target, torch.float32).to(device), torch.float32)


def _train(size: Size, corpus: Corpus, target: Path, device: torch.device, log: Callable[[str], None]) -> None:
    torch.manual_seed(0)
    config = Teach(
        model=MODEL,
        data=DATA,
        steps=size.teacher_steps,
        average=EMA(decay=0.995, start=size.teacher_steps // 4),
        optimizer=Optimizer(lr=size.teacher_lr, betas=(0.9, 0.99), clip=1.0, warmup=min(50, size.teacher_steps // 4)),
        shift=_SHIFT,
    )
    teaching = Teaching(config, Denoiser(_build_random(size).to(device), torch.float32))
    started, losses = time.perf_counter(), []
    tenth = max(1, size.teacher_steps // 10)
    signals = Signals()
    for step in range(size.teacher_steps):
        teaching.step(step, [corpus.example(0, step, size.teacher_batch, _DROPPED_CAPTIONS)], signals)
        if (step + 1) % tenth == 0:
            means, signals = signals.means(World(0, 1, device)), Signals()
            losses.append({"step": step + 1, **{name: round(value, 4) for name, value in means.items()}})
            log(f"teacher: step {step + 1}, loss {means['student/loss']:.3f}, {time.perf_counter() - started:.0f} s")
    with new_folder(target) as unfinished:
        with teaching.ema.swap_weights():
            teaching.student.transformer.save_pretrained(unfinished / model_folder.TRANSFORMER)
        write_json(unfinished / "training.json", {"s": round(time.perf_counter() - started, 1), "losses": losses})


def _build_random(size: Size) -> Any:
    """A transformer with random weights whose VACE branch adds nothing at first, as `models.init_random` builds it."""
    from diffusers import WanVACETransformer3DModel

    width = 32 * size.heads
    transformer = WanVACETransformer3DModel(
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
    return networks.zero_vace_branch(transformer).eval()


class Sampler:
    """Samples with the conditions of a corpus; the noise of each depends on a seed and its position alone."""

    def __init__(self, size: Size, corpus: Corpus) -> None:
        self._size, self._corpus = size, corpus

    def sample_all(self, generate: Callable[[Conditions, int, str], Tensor], seed: int) -> Tensor:
        """A sample for each clip: latents on the CPU."""
        return self._sample(list(range(len(self._corpus))), generate, seed, "main")

    def sample_diverse(self, generate: Callable[[Conditions, int, str], Tensor], seed: int) -> Tensor:
        """Several samples for each of the first clips: [conditions, seeds, ...]."""
        conditions, seeds = self._size.diversity
        rows = [row for row in range(conditions) for _ in range(seeds)]
        return self._sample(rows, generate, seed, "diverse").unflatten(0, (conditions, seeds))

    def _sample(
        self, rows: Sequence[int], generate: Callable[[Conditions, int, str], Tensor], seed: int, label: str
    ) -> Tensor:
        starts = range(0, len(rows), self._size.chunk)
        batches = [
            generate(self._corpus.conditions(rows[start : start + self._size.chunk]), seed, f"{label} {start}").cpu()
            for start in starts
        ]
        return torch.cat(batches)


def build_few_step_generator(network: Denoiser, schedule: Schedule) -> Callable[[Conditions, int, str], Tensor]:
    """A function that samples in a student's few steps, without guidance."""

    def generate(conditions: Conditions, seed: int, label: str) -> Tensor:
        def noise(step: int) -> Tensor:
            return seeded_random.normal(conditions.shape, conditions.context.device, seed, "sample", label, step)

        return rollout(network, conditions, schedule, noise)

    return generate


def build_many_step_generator(
    network: Denoiser, empty: Tensor, steps: int, cfg: float
) -> Callable[[Conditions, int, str], Tensor]:
    """A function that samples from a teacher with guidance in `steps` steps of Euler's method."""

    def generate(conditions: Conditions, seed: int, label: str) -> Tensor:
        noise = seeded_random.normal(conditions.shape, conditions.context.device, seed, "sample", label, 0)
        return integrate(network, conditions, empty, noise, steps=steps, shift=_SHIFT, cfg=cfg)

    return generate
