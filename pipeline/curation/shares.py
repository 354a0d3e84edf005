"""The share of each task in a mixture, as an exact fraction, from the percents and weights that people write."""

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
    weighed: dict[str, Fraction] = {}
    for task, said in tasks.items():
        if isinstance(said, str):
            percent = _PERCENT.fullmatch(said.strip())
            if percent is None:
                raise UsageError(f"{name}: tasks.{task}: {said!r} is neither a weight, as 2 is, nor a share, as 40% is")
            fixed[task] = Fraction(percent[1]) / 100
        else:
            weighed[task] = Fraction(str(said))
        if not (fixed | weighed)[task] > 0:
            raise UsageError(f"{name}: tasks.{task}: {said} is not above 0; leave a task out that is not to be drawn")
    rest = 1 - sum(fixed.values())
    if rest < 0 or (rest > 0) != bool(weighed):
        told = " + ".join(f"{task} {tasks[task]}" for task in fixed)
        left = f", which leaves nothing for {', '.join(weighed)}" if weighed else ", and must sum to 100 %"
        raise UsageError(f"{name}: the shares sum to {float(100 * (1 - rest)):g} % ({told}){left}")
    return {task: fixed[task] if task in fixed else rest * weighed[task] / sum(weighed.values()) for task in tasks}
