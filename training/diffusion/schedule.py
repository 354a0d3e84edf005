"""Noise levels: the few steps of the sampler, and the levels that scores are compared at.

A `Schedule` belongs to a student like its weights: it is stored in every checkpoint and export, and they are used with
no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UsageError
from training.diffusion.flow_matching import shift_times

# Wan's networks take the time in thousandths.
TIMESTEPS = 1000
# A larger shift leaves only noise; a network cannot distinguish more steps.
_MAX_SHIFT, _MAX_STEPS = 1e3, TIMESTEPS


@dataclass(frozen=True, slots=True)
class Schedule:
    """A sampler of `steps` steps: at each the student predicts the clean latent, which is noised to the next level.

    The levels are uniform before the shift: 1000, 937.5, 833.3, 625 for 4 steps at shift 5, as in Self-Forcing.
    [arXiv:2506.08009; "consistency" sampling, arXiv:2303.01469]
    """

    steps: int = 4
    """How many steps."""
    shift: float = 5.0
    """How far the levels are moved towards noise."""
    sampler: str = "stochastic"
    """Noise is drawn again at each step; there is no other sampler."""

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= _MAX_STEPS or not 0 < self.shift < _MAX_SHIFT or self.sampler != "stochastic":
            raise ValueError(
                f"a schedule has 1 to {_MAX_STEPS} steps, a shift in (0, {_MAX_SHIFT:g}) and the sampler 'stochastic'"
            )

    @property
    def sigmas(self) -> Tensor:
        """The noise level of each step, decreasing from 1: float64 [steps]."""
        return shift_times(1 - torch.arange(self.steps, dtype=torch.float64) / self.steps, self.shift)

    @property
    def timesteps(self) -> Tensor:
        """The same as the timesteps that the network takes: float64 [steps] in (0, 1000]."""
        return self.sigmas * TIMESTEPS

    def __str__(self) -> str:
        """For messages."""
        return f"{self.steps} steps at shift {self.shift:g} ({', '.join(f'{time:.4g}' for time in self.timesteps)})"

    def as_dict(self) -> dict[str, Any]:
        """The input of `parse`, plus the timesteps for other programs to read."""
        return {**asdict(self), "timesteps": [round(time, 4) for time in self.timesteps.tolist()]}


def parse(stored: Mapping[str, Any] | None, where: str) -> Schedule:
    """The schedule that a model in `where` was stored with. Raises UsageError if there is none, or it contradicts
    itself."""
    if stored is None:
        raise UsageError(f"{where} stores no schedule")
    try:
        schedule = Schedule(int(stored["steps"]), float(stored["shift"]), str(stored["sampler"]))
        timesteps = [round(float(time), 4) for time in stored["timesteps"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{where} stores no schedule that can be read ({error!r})") from error
    if schedule.as_dict()["timesteps"] != timesteps:
        raise UsageError(f"the schedule in {where} contradicts itself: {schedule} are not {timesteps}")
    return schedule


@dataclass(frozen=True, slots=True)
class Levels:
    """The noise levels that fake and real score are compared at: uniform, shifted, and clamped away from both ends.

    In thousandths, as published: U[0, 1000) shifted by 5 and clamped to [20, 980]. [Self-Forcing; VDOT]
    """

    shift: float = 5.0
    """How far the levels are moved towards noise."""
    low: float = 20.0
    """The lowest level, in thousandths."""
    high: float = 980.0
    """The highest level, in thousandths."""

    def __post_init__(self) -> None:
        if not (0 < self.shift < _MAX_SHIFT and 0 < self.low < self.high < TIMESTEPS):
            raise ValueError(f"levels have a shift in (0, {_MAX_SHIFT:g}), and 0 < low < high < {TIMESTEPS}")

    def from_uniform(self, uniform: Tensor) -> Tensor:
        """Noise levels from uniform numbers in [0, 1), of the same shape: float32."""
        return shift_times(uniform.double(), self.shift).clamp(self.low / TIMESTEPS, self.high / TIMESTEPS).float()
