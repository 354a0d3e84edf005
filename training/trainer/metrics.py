"""The metrics of a run: numbers of each step, as means over micro-batches and ranks.

They go to `log.jsonl`, and to TensorBoard if it is installed.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.storage.atomic import write_file
from training.distributed import World

_LOG = logging.getLogger("vdot_data")
# How much wider than real clips samples may spread, and over how many updates of the student that is averaged, because
# rollouts end at random steps. [docs/distillation.md, "What to look at"]
_SATURATED, _UPDATES = 1.15, 20


class Signals:
    """The numbers of one step."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}

    def add(self, **values: Tensor | float) -> None:
        """Add one value to each name; a tensor of one element stays on its device."""
        for name, value in values.items():
            self._values.setdefault(name, []).append(torch.as_tensor(value, dtype=torch.float32).detach())

    def means(self, world: World) -> dict[str, float]:
        """The mean of each over all processes; every process must call this."""
        local_sums = {
            name: (float(torch.stack([*map(_to_cpu, values)]).sum()), len(values))
            for name, values in self._values.items()
        }
        totals: dict[str, list[float]] = {}
        for rank_sums in world.gather(local_sums):
            for name, (total, count) in rank_sums.items():
                pair = totals.setdefault(name, [0.0, 0.0])
                pair[0] += total
                pair[1] += count
        return {name: total / count for name, (total, count) in sorted(totals.items())}


class SaturationMonitor:
    """Warns if a student's samples spread wider than real clips for long: contrast and colour keep growing."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=_UPDATES)
        self._warned = False

    def observe(self, step: int, means: Mapping[str, float]) -> None:
        """Take in the numbers of a step; warns once each time over-saturation begins."""
        if "student/std_ratio" not in means:
            return
        self._last.append(means["student/std_ratio"])
        mean = sum(self._last) / len(self._last)
        high = len(self._last) == _UPDATES and mean > _SATURATED
        if high and not self._warned:
            _LOG.warning(
                "step %d: over-saturation: samples spread %.2f times as far as real clips, on average of %d updates; "
                "an earlier checkpoint may be better, and a lower `teacher_cfg` or rate would help",
                step, mean, _UPDATES,
            )  # fmt: skip
        self._warned = high


class Log:
    """`log.jsonl` and TensorBoard's events in a folder; entries after `step`, left by a killed run, are dropped."""

    def __init__(self, folder: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "log.jsonl"
        # Damaged bytes make lines that do not parse, which are dropped below.
        lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
        kept_lines = [line for line in lines if _read_step(line) <= step]
        # Atomic: this is the only record of the earlier steps.
        write_file(file, "".join(f"{line}\n" for line in kept_lines).encode())
        self._file = file.open("a")
        self._board: Any = None
        if find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write the line of a step."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if self._board is not None and isinstance(value, int | float):
                self._board.add_scalar(name, value, step)

    def add_picture(self, step: int, name: str, frames: Any) -> None:
        """Add a picture uint8 [H, W, 3] of a step."""
        if self._board is not None:
            self._board.add_image(name, frames, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _to_cpu(value: Tensor) -> Tensor:
    return value.cpu()


def _read_step(line: str) -> float:
    """The step of a line; infinity for a line cut short by a kill."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
