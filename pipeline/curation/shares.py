"""Computes the share of each task in a mixture, as an exact fraction, from percents and weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction

from pipeline.errors import UsageError

_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")


def task_shares(
    tasks: Mapping[str, float | str] | Sequence[str], temperature: float | None, clips: Mapping[str, int], name: str
) -> dict[str, Fraction]:
    """The exact share of each task; they sum to 1. Raises `UsageError` for shares that do not."""
    if not isinstance(tasks, dict):
        power = 1 / (temperature or 1.0)
        weights = {task: Fraction(clips[task] ** power).limit_denominator(10**6) for task in tasks}
        return {task: weight / sum(weights.values()) for task, weight in weights.items()}
    fixed: dict[str, Fraction] = {}
    relative: dict[str, Fraction] = {}
    for task, value in tasks.items():
        if isinstance(value, str):
            percent = _PERCENT.fullmatch(value.strip())
            if percent is None:
                raise UsageError(
                    f"{name}: tasks.{task}: {value!r} is neither a weight, as 2 is, nor a share, as 40% is"
                )
            fixed[task] = Fraction(percent[1]) / 100
        else:
            relative[task] = Fraction(str(value))
        if not (fixed | relative)[task] > 0:
            raise UsageError(f"{name}: tasks.{task}: {value} is not above 0; leave out a task that is not to be drawn")
    remainder = 1 - sum(fixed.values())
    if remainder < 0 or (remainder > 0) != bool(relative):
        listing = " + ".join(f"{task} {tasks[task]}" for task in fixed)
        consequence = f", which leaves nothing for {', '.join(relative)}" if relative else ", and must sum to 100 %"
        raise UsageError(f"{name}: the shares sum to {float(100 * (1 - remainder)):g} % ({listing}){consequence}")
    return {
        task: fixed[task] if task in fixed else remainder * relative[task] / sum(relative.values()) for task in tasks
    }
