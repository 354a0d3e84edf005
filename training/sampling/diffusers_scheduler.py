"""The student's sampler for diffusers' own pipelines: its stored steps, with new noise after each.

    pipe = WanVACEPipeline.from_pretrained(folder)
    pipe.scheduler = StoredSteps.from_pretrained(folder, subfolder="scheduler")

Its parent class has the same update, but other steps: for four steps at shift 5 it takes 1000, 909.7, 717.3 and 24.4.
"""

from __future__ import annotations

from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.configuration_utils import register_to_config

from pipeline.errors import UsageError
from training.diffusion.schedule import TIMESTEPS, Schedule


class StoredSteps(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
    """A scheduler with exactly the `trained_steps` steps of a student at its `shift`."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = TIMESTEPS,
        shift: float = 5.0,
        stochastic_sampling: bool = True,
        trained_steps: int = 4,
    ) -> None:
        super().__init__(num_train_timesteps, shift, stochastic_sampling=stochastic_sampling)

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None, **_: Any) -> None:
        """Set the steps. Raises UsageError for a number that the student was not trained with."""
        trained = self.config.trained_steps
        if num_inference_steps != trained:
            raise UsageError(f"this student makes {trained} steps, not {num_inference_steps}")
        # Before the shift, which the parent applies.
        super().set_timesteps(sigmas=Schedule(trained, 1.0).sigmas.tolist(), device=device)


def make_scheduler(schedule: Schedule) -> StoredSteps:
    """The scheduler of a schedule."""
    scheduler: StoredSteps = StoredSteps(shift=schedule.shift, trained_steps=schedule.steps)
    return scheduler


def make_teacher_scheduler(shift: float) -> FlowMatchEulerDiscreteScheduler:
    """The scheduler of a teacher: Euler's method."""
    return FlowMatchEulerDiscreteScheduler(shift=shift)
