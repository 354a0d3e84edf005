"""The samplers of trained networks: a student's few steps, or a teacher's many. The sampler is stored with the weights,
and they are used with no other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from pipeline.formats.strict_yaml import StrictModel
from training import config
from training.diffusion.schedule import Schedule
from training.models.networks import Conditions, Denoiser
from training.sampling.rollout import Noise, integrate, rollout


@dataclass(frozen=True, slots=True)
class StudentSampler:
    """Samples with the steps that a student was distilled at."""

    schedule: Schedule

    def sample(self, network: Denoiser, conditions: Conditions, _negative: Tensor, noise: Noise) -> Tensor:
        """Clean latents [B, 16, R + T', h, w], float32, by the stochastic sampler, without guidance."""
        with torch.no_grad():
            return rollout(network, conditions, self.schedule, noise)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, whose "distilled" is the input of `schedule.parse`."""
        return {"distilled": self.schedule.as_dict()}


class TeacherSampler(StrictModel):
    """Samples a teacher by steps of Euler's method, with guidance."""

    steps: config.Count
    shift: config.Positive
    cfg: Annotated[float, Field(ge=1)]

    def sample(self, network: Denoiser, conditions: Conditions, negative: Tensor, noise: Noise) -> Tensor:
        """Clean latents [B, 16, R + T', h, w], float32, from the noise of the first step; `negative`: the text of the
        unconditional prediction."""
        return integrate(network, conditions, negative, noise(0), steps=self.steps, shift=self.shift, cfg=self.cfg)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, whose "taught" is the input of this class."""
        return {"taught": self.model_dump()}


Sampler = StudentSampler | TeacherSampler


def for_run(run: config.Run) -> Sampler:
    """The sampler of the network that a run trains."""
    if isinstance(run, config.Distill):
        return StudentSampler(run.schedule)
    assert isinstance(run, config.Teach)
    return TeacherSampler(steps=run.sample_steps, shift=run.shift, cfg=run.teacher_cfg)
