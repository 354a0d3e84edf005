"""The rollout of the student from noise, the same in training, where it may end at any step, and in inference.

At each step the student predicts the clean latent, which is then noised to the level of the next one. Training
differentiates the step where a rollout ends, and the steps before are the student's own (backward simulation, DMD2,
arXiv:2405.14867), so that it sees the same inputs in training as in inference.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from training.diffusion.flow_matching import add_noise, apply_guidance, check_finite
from training.diffusion.schedule import Schedule
from training.models.networks import Conditions, Denoiser

Noise = Callable[[int], Tensor]
"""Step -> the standard normal noise that it starts from: float32 [B, 16, R + T', h, w]."""


def rollout(
    student: Denoiser,
    conditions: Conditions,
    schedule: Schedule,
    noise: Noise,
    *,
    last: int | None = None,
    gradient: bool = False,
) -> Tensor:
    """The clean latents [B, 16, R + T', h, w], float32, that the student predicts at step `last` (None: its last one).

    With `gradient`, only that step can be differentiated.
    Raises FloatingPointError if they are not finite.
    """
    sigmas = schedule.sigmas.float()
    end = schedule.steps - 1 if last is None else last
    if not 0 <= end < schedule.steps:
        raise ValueError(f"a rollout of {schedule.steps} steps cannot end at step {last}")
    noisy = noise(0)
    for step in range(end + 1):
        level = sigmas[step].expand(len(noisy))
        with torch.set_grad_enabled(gradient and step == end):
            clean = student.predict_clean(noisy, level, conditions)
        if step < end:
            noisy = add_noise(clean, noise(step + 1), sigmas[step + 1].expand(len(noisy)))
    check_finite(f"the student's sample at step {end + 1} of {schedule.steps}", clean)
    return clean


def integrate(
    network: Denoiser, conditions: Conditions, negative: Tensor, noise: Tensor, *, steps: int, shift: float, cfg: float
) -> Tensor:
    """A teacher's sample from noise in `steps` steps of Euler's method, guided by `cfg`: clean latents, float32.

    `negative`: the text of the unconditional prediction, [1, tokens, dim]; not used if `cfg` is 1. Raises
    FloatingPointError if the sample is not finite.
    """
    sigmas = [*Schedule(steps, shift).sigmas.tolist(), 0.0]
    noisy = noise
    for sigma, following in pairwise(sigmas):
        level = torch.full((len(noisy),), sigma)
        with torch.no_grad():
            velocity = network.predict_velocity(noisy, level, conditions)
            if cfg != 1:
                velocity = apply_guidance(
                    velocity, network.predict_velocity(noisy, level, conditions.with_text(negative)), cfg
                )
        noisy = noisy + (following - sigma) * velocity
    check_finite(f"the teacher's sample in {steps} steps", noisy)
    return noisy
