"""Measures how long a clip lasts, so that rules and mixtures can use it by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from annotators.base import Filter, Frames, Signal, Value


class Duration(Filter):
    """Frames over frame rate."""

    name = "duration"
    version = "1"
    signals: ClassVar[Mapping[str, Signal]] = {"duration": Signal("s", "length of the clip on the grid")}

    def __call__(self, frames: Frames, fps: float) -> dict[str, Value]:
        return {"duration": len(frames) / fps}
