"""What a run says of itself: the numbers of a step, as means over micro-batches and ranks.

They go to `log.jsonl` and to TensorBoard, where it is installed.
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

from training.distributed import World

_LOG = logging.getLogger("vdot_data")
# How much wider than real clips samples may spread, and the updates of the student over which that is looked at, as
# rollouts end at random steps. [docs/distillation.md, "What to look at"]
_SATURATED, _UPDATES = 1.15, 20


class Signals:
    """Numbers of one step."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}

    def add(self, **values: Tensor | float) -> None:
        """One more value of each; a tensor of one element stays where it is."""
        for name, value in values.items():
            self._values.setdefault(name, []).append(torch.as_tensor(value, dtype=torch.float32).detach())

    def means(self, world: World) -> dict[str, float]:
        """The mean of each over all processes, which must all ask."""
        own = {
            name: (float(torch.stack([*map(_cpu, values)]).sum()), len(values)) for name, values in self._values.items()
        }
        found: dict[str, list[float]] = {}
        for each in world.gathered(own):
            for name, (total, count) in each.items():
                known = found.setdefault(name, [0.0, 0.0])
                known[0] += total
                known[1] += count
        return {name: total / count for name, (total, count) in sorted(found.items())}


class Saturation:
    """Warns of a student whose samples stay wider spread than real clips: contrast and colour that grow without end."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=_UPDATES)
        self._warned = False

    def look(self, step: int, means: Mapping[str, float]) -> None:
        """See the numbers of a step; warns once each time it begins."""
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
    """`log.jsonl` and TensorBoard's events in a folder; what is beyond `step`, by a run that was killed, is dropped."""

    def __init__(self, folder: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "log.jsonl"
        # What is damaged is no line of a step.
        lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
        kept = [line for line in lines if _step_of(line) <= step]
        # Whole or not at all: it is all that is known of the steps before.
        half = file.with_suffix(".half")
        half.write_text("".join(f"{line}\n" for line in kept))
        half.replace(file)
        self._file = file.open("a")
        self._board: Any = None
        if find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """One line of a step."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if self._board is not None and isinstance(value, int | float):
                self._board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, frames: Any) -> None:
        """A picture uint8 [H, W, 3] of a step."""
        if self._board is not None:
            self._board.add_image(name, frames, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is still to be written."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _cpu(value: Tensor) -> Tensor:
    return value.cpu()


def _step_of(line: str) -> float:
    """The step of a line; a line cut short by a kill is beyond all."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
