"""How clean latents are made by what was trained: a student's few steps, or a teacher's many. It is stored with the
weights, and no other is used with them."""

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
class Few:
    """The steps that a student was distilled at."""

    schedule: Schedule

    def make(self, network: Denoiser, conditions: Conditions, _negative: Tensor, noise: Noise) -> Tensor:
        """Clean latents [B, 16, R + T', h, w], float32, by the stochastic sampler; not guided."""
        with torch.no_grad():
            return rollout(network, conditions, self.schedule, noise)

    def as_json(self) -> dict[str, Any]:
        """What `schedule.parse` reads."""
        return {"distilled": self.schedule.as_json()}


class Many(StrictModel):
    """A teacher's steps of Euler's method, guided."""

    steps: config.Count
    shift: config.Positive
    cfg: Annotated[float, Field(ge=1)]

    def make(self, network: Denoiser, conditions: Conditions, negative: Tensor, noise: Noise) -> Tensor:
        """Clean latents [B, 16, R + T', h, w], float32, from the noise of the first step; `negative`: the text of the
        unconditional prediction."""
        return integrate(network, conditions, negative, noise(0), steps=self.steps, shift=self.shift, cfg=self.cfg)

    def as_json(self) -> dict[str, Any]:
        """What this class reads."""
        return {"taught": self.model_dump()}


Sampling = Few | Many


def of(run: config.Run) -> Sampling:
    """How what a run trains is sampled."""
    if isinstance(run, config.Distill):
        return Few(run.schedule)
    assert isinstance(run, config.Teach)
    return Many(steps=run.sample_steps, shift=run.shift, cfg=run.teacher_cfg)
