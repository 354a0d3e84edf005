"""Measures flashes and flicker: light that jumps and comes back, unlike at a cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from annotators.base import Filter, Frames, Signal, Value
from annotators.opencv import cv2

# A flash is brighter or darker than before and after by this many levels of 255, and ends within this many seconds.
_LEVELS, _WITHIN_S = 25.0, 0.25


class Flicker(Filter):
    """Watches the mean luma of the frames."""

    name = "flicker"
    version = "1"
    signals: ClassVar[Mapping[str, Signal]] = {
        "flashes": Signal("count", "times that the light jumps and is back within a quarter of a second", "int"),
        "flicker": Signal("0..255", "rms of the second difference of mean luma from frame to frame"),
    }

    def __call__(self, frames: Frames, fps: float) -> dict[str, Value]:
        luma = np.array([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).mean() for frame in frames])
        flashes, index, limit = 0, 1, max(1, round(_WITHIN_S * fps))
        while index < len(luma) - 1:
            # How far the light is from its level in the frame before.
            away = luma[index : index + limit + 1] - luma[index - 1]
            back = np.flatnonzero(np.abs(away) < _LEVELS / 2)
            if abs(away[0]) >= _LEVELS and len(back):
                flashes += 1
                index += int(back[0])
            index += 1
        curvature = np.diff(luma, 2)
        return {
            "flashes": flashes,
            "flicker": float(np.sqrt((curvature**2).mean())) if len(curvature) else None,
        }
