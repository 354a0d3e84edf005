"""Measures black frames and fades, which belong to an edit and not to a scene."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from annotators.base import Filter, Frames, Signal, Value

# A frame is black when all but this share of its pixels is darker than this level of 255.
_BRIGHT_SHARE, _BLACK = 0.02, 24
# Every fourth pixel of every fourth row is enough for a share.
_STEP = 4
# A fade changes the light for at least this long, by at least this factor between its ends.
_LEAST_S, _FACTOR = 0.3, 4.0


class Black(Filter):
    """Compares all but the brightest few pixels of each frame with black."""

    name = "black"
    version = "2"
    signals: ClassVar[Mapping[str, Signal]] = {
        "black": Signal("0..1", "share of frames that are black"),
        "fade": Signal("s", "how long the picture fades in from black or out to it"),
    }

    def __call__(self, frames: Frames, fps: float) -> dict[str, Value]:
        dark = np.max(frames[:, ::_STEP, ::_STEP], axis=-1).reshape(len(frames), -1)
        bright = np.quantile(dark, 1 - _BRIGHT_SHARE, axis=1)
        light = dark.mean(axis=1) + 1.0
        length = _measure_fade(light, bright, fps) + _measure_fade(light[::-1], bright[::-1], fps)
        return {"black": float((bright < _BLACK).mean()), "fade": length / fps}


def _measure_fade(light: NDArray[np.float64], bright: NDArray[np.float64], fps: float) -> int:
    """Count frames from the first one, if it is black, until the light stops growing; 0 where that is not a fade."""
    if bright[0] >= _BLACK or (bright < _BLACK).all():
        return 0
    # Repeated frames, as of a source with fewer frames a second, do not interrupt a fade.
    distinct = np.flatnonzero(np.concatenate([[True], np.diff(light) != 0]))
    levels = light[distinct]
    start = int(np.argmax(bright[distinct] >= _BLACK))
    grows = np.diff(levels[start - 1 :]) > 0
    last = start - 1 + (int(np.argmin(grows)) if not grows.all() else len(grows))
    first, end = int(distinct[start]), int(distinct[last]) + 1
    long_enough = end - first >= _LEAST_S * fps
    return end if long_enough and levels[last] / levels[0] >= _FACTOR else 0
