"""Measures how colourful a clip is: finds grayscale sources, tinted ones included, and feeds the aesthetic score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from annotators.base import Filter, Frames, Signal, Value
from filters.exposure import STRIDE

# Every fourth pixel of every fourth row.
_STEP = 4


class Colour(Filter):
    """Spread of the two opponent colours; a tint has none, however strong it is.

    `colourfulness` is that of Hasler and Suesstrunk, "Measuring Colourfulness in Natural Images" (SPIE 2003).
    """

    name = "colour"
    version = "1"
    signals: ClassVar[Mapping[str, Signal]] = {
        "colourfulness": Signal("0..150", "Hasler and Suesstrunk's M3, median over frames"),
        "colour_spread": Signal("0..128", "standard deviation of the opponent colours, largest over frames"),
    }

    def __call__(self, frames: Frames, fps: float) -> dict[str, Value]:
        red, green, blue = np.moveaxis(frames[::STRIDE, ::_STEP, ::_STEP].astype(np.float32), -1, 0)
        opponents = np.stack([red - green, (red + green) / 2 - blue]).reshape(2, len(red), -1)
        spread = np.linalg.norm(opponents.std(axis=2), axis=0)
        shift = np.linalg.norm(opponents.mean(axis=2), axis=0)
        return {"colourfulness": float(np.median(spread + 0.3 * shift)), "colour_spread": float(spread.max())}
