"""When the network is asked: the few steps of the sampler, and the noise levels that scores are compared at.

A `Schedule` belongs to a student as its weights do: it is stored in every checkpoint and export, and no other is used
with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UsageError
from training.diffusion.flow_matching import shifted

# Wan's networks are told the time in thousandths.
TIMESTEPS = 1000
# A shift beyond this leaves nothing but noise; steps beyond these are told apart by no network.
_MOST, _MOST_STEPS = 1e3, TIMESTEPS


@dataclass(frozen=True, slots=True)
class Schedule:
    """A sampler of `steps` steps: at each the student says the clean latent, which is noised anew to the next level.

    The levels are uniform before the shift: 1000, 937.5, 833.3, 625 for 4 steps at shift 5, as Self-Forcing's.
    [arXiv:2506.08009; "consistency" sampling, arXiv:2303.01469]
    """

    steps: int = 4
    shift: float = 5.0
    sampler: str = "stochastic"

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= _MOST_STEPS or not 0 < self.shift < _MOST or self.sampler != "stochastic":
            raise ValueError(
                f"a schedule has 1 to {_MOST_STEPS} steps, a shift in (0, {_MOST:g}) and the sampler 'stochastic'"
            )

    @property
    def sigmas(self) -> Tensor:
        """The noise level of each step, falling from 1: float64 [steps]."""
        return shifted(1 - torch.arange(self.steps, dtype=torch.float64) / self.steps, self.shift)

    @property
    def timesteps(self) -> Tensor:
        """The same as the network is told them: float64 [steps] in (0, 1000]."""
        return self.sigmas * TIMESTEPS

    def __str__(self) -> str:
        """As people say it."""
        return f"{self.steps} steps at shift {self.shift:g} ({', '.join(f'{time:.4g}' for time in self.timesteps)})"

    def as_json(self) -> dict[str, Any]:
        """What `parse` reads; the steps themselves stand there for others to read."""
        return {**asdict(self), "timesteps": [round(time, 4) for time in self.timesteps.tolist()]}


def parse(stored: Mapping[str, Any] | None, where: str) -> Schedule:
    """The schedule that a model in `where` was stored with. Raises UsageError for none, and for one that contradicts
    itself."""
    if stored is None:
        raise UsageError(f"{where} stores no schedule")
    try:
        made = Schedule(int(stored["steps"]), float(stored["shift"]), str(stored["sampler"]))
        timesteps = [round(float(time), 4) for time in stored["timesteps"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{where} stores no schedule that can be read ({error!r})") from error
    if made.as_json()["timesteps"] != timesteps:
        raise UsageError(f"the schedule in {where} contradicts itself: {made} are not {timesteps}")
    return made


@dataclass(frozen=True, slots=True)
class Levels:
    """The noise levels that fake and real score are compared at: uniform, shifted, and none too near an end.

    In thousandths, as published: U[0, 1000) shifted by 5 and kept within 20 and 980. [Self-Forcing; VDOT]
    """

    shift: float = 5.0
    low: float = 20.0
    high: float = 980.0

    def __post_init__(self) -> None:
        if not (0 < self.shift < _MOST and 0 < self.low < self.high < TIMESTEPS):
            raise ValueError(f"levels have a shift in (0, {_MOST:g}), and 0 < low < high < {TIMESTEPS}")

    def of(self, uniform: Tensor) -> Tensor:
        """Noise levels from uniform numbers in [0, 1), of the same shape: float32."""
        return shifted(uniform.double(), self.shift).clamp(self.low / TIMESTEPS, self.high / TIMESTEPS).float()
