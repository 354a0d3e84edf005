"""What the student makes of noise, step by step: the same in training, where it may end at any step, and afterwards.

At each step the student says the clean latent, which is then noised anew to the level of the next one. Training learns
at the step where a rollout ends, and what came before is the student's own (backward simulation, DMD2,
arXiv:2405.14867), so that it meets in training what it meets when it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from training.diffusion.flow_matching import finite, guided, noised
from training.diffusion.schedule import Schedule
from training.models.networks import Conditions, Denoiser

Noise = Callable[[int], Tensor]
"""Step -> the standard normal noise that it begins from: float32 [B, 16, R + T', h, w]."""


def rollout(
    student: Denoiser,
    conditions: Conditions,
    schedule: Schedule,
    noise: Noise,
    *,
    last: int | None = None,
    gradient: bool = False,
) -> Tensor:
    """The clean latents [B, 16, R + T', h, w], float32, that the student says at step `last` (None: at its last).

    With `gradient`, that one step can be differentiated, and nothing before it.
    Raises FloatingPointError where the student says what is no number.
    """
    sigmas = schedule.sigmas.float()
    end = schedule.steps - 1 if last is None else last
    if not 0 <= end < schedule.steps:
        raise ValueError(f"a rollout of {schedule.steps} steps cannot end at step {last}")
    at = noise(0)
    for step in range(end + 1):
        level = sigmas[step].expand(len(at))
        with torch.set_grad_enabled(gradient and step == end):
            clean = student.clean(at, level, conditions)
        if step < end:
            at = noised(clean, noise(step + 1), sigmas[step + 1].expand(len(at)))
    finite(f"the student's sample at step {end + 1} of {schedule.steps}", clean)
    return clean


def integrate(
    network: Denoiser, conditions: Conditions, negative: Tensor, noise: Tensor, *, steps: int, shift: float, cfg: float
) -> Tensor:
    """What a teacher makes of noise in `steps` steps of Euler's method, guided by `cfg`: clean latents, float32.

    `negative`: the text of the unconditional prediction, [1, tokens, dim]; not asked for where `cfg` is 1. Raises
    FloatingPointError where the teacher says what is no number.
    """
    sigmas = [*Schedule(steps, shift).sigmas.tolist(), 0.0]
    at = noise
    for sigma, following in pairwise(sigmas):
        level = torch.full((len(at),), sigma)
        with torch.no_grad():
            said = network.velocity(at, level, conditions)
            if cfg != 1:
                said = guided(said, network.velocity(at, level, conditions.with_text(negative)), cfg)
        at = at + (following - sigma) * said
    finite(f"what the teacher makes in {steps} steps", at)
    return at
