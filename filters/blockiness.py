"""Measures compression damage: the edges of a codec's blocks, which stand out at low bit rates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from annotators.base import Filter, Frames, Signal, Value
from filters.exposure import grey

Floats = NDArray[np.float32]

# The transform blocks of MPEG, H.264 and JPEG.
_SIDE = 8
# A clip shows its source at its own size or smaller, down to this share of it (1080 lines at 480).
_SMALLEST = 0.43
# The edges of this many blocks are needed to tell a grid from a fence.
_LEAST = 6


class Blockiness(Filter):
    """Steps between columns (rows) that lie one block apart, beyond those between their neighbours.

    A step counts as far as it is higher than the mean of the two beside it, as in Wang, Bovik and Evans, "Blind
    Measurement of Blocking Artifacts in Images" (ICIP 2000). A clip may be smaller than its source, and its blocks with
    it: of all possible source sizes, the one with the most visible blocks counts. The signal is the lower of both
    directions, because blocks are as wide as they are high, and a fence is not.
    """

    name = "blockiness"
    version = "2"
    signals: ClassVar[Mapping[str, Signal]] = {
        "blockiness": Signal("0..255", "how much higher steps on a grid of a codec's blocks are than those beside them")
    }

    def __call__(self, frames: Frames, fps: float) -> dict[str, Value]:
        pictures = grey(frames).astype(np.float32)
        if min(pictures.shape[1:]) < _SIDE * _LEAST:
            return {"blockiness": None}
        across, down = _step_excess(pictures), _step_excess(pictures.swapaxes(1, 2))
        return {
            "blockiness": max(
                min(_grid_excess(across, side), _grid_excess(down, side)) for side in _possible_sides(pictures)
            )
        }


def _possible_sides(pictures: Floats) -> list[float]:
    """The sizes that blocks may have in a clip, whose sides are scaled from a source's even number of pixels."""
    return sorted({
        _SIDE * side / source
        for side in pictures.shape[1:]
        for source in range(side // 2 * 2, round(side / _SMALLEST) + 1, 2)
        if source >= side
    })  # fmt: skip


def _step_excess(pictures: Floats) -> Floats:
    """How much higher the step after each column of float32 [T, H, W] is than those beside it: float32 [W - 3]."""
    steps = np.stack([np.abs(np.diff(picture, axis=1)) for picture in pictures]).mean(axis=(0, 1))
    excess: Floats = steps[1:-1] - (steps[:-2] + steps[2:]) / 2
    return excess


def _grid_excess(excess: Floats, side: float) -> float:
    """The excess at the best offset of blocks of this side, over that of a typical offset."""
    blocks = int((len(excess) - 1) / side)
    edges = np.arange(side)[:, None] + np.arange(blocks) * side
    # The median over blocks, so that a single edge of the picture itself has no weight.
    places = np.median(excess[np.rint(edges).astype(int).clip(max=len(excess) - 1)], axis=1)
    return float(places.max() - np.median(places))
