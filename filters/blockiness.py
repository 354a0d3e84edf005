"""Compression damage: the edges of a codec's blocks, which stand out at low bit rates and which nature has none of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from annotators.base import Frames, Signal, Value
from filters.exposure import grey

Floats = NDArray[np.float32]

# The transform blocks of MPEG, H.264 and JPEG.
_SIDE = 8
# A clip shows its source at its own size or smaller, down to this share of it (1080 lines at 480).
_SMALLEST = 0.43
# The edges of this many blocks are needed to tell a grid from a fence.
_LEAST = 6


class Blockiness:
    """Steps between columns (rows) that lie one block apart, beyond those between their neighbours.

    A step counts as far as it is higher than the mean of the two beside it, as in Wang, Bovik and Evans, "Blind
    Measurement of Blocking Artifacts in Images" (ICIP 2000). A clip may be smaller than its source, and its blocks with
    it: of all sources that it may come from the one counts whose blocks show most. The lower one of both directions is
    the signal, because blocks are as wide as they are high, and a fence is not.
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
        across, down = _beyond(pictures), _beyond(pictures.swapaxes(1, 2))
        return {"blockiness": max(min(_excess(across, side), _excess(down, side)) for side in _sides(pictures))}


def _sides(pictures: Floats) -> list[float]:
    """How large blocks may be in a clip: its scale makes one side of its source, an even number, one of its own."""
    return sorted({
        _SIDE * side / source
        for side in pictures.shape[1:]
        for source in range(side // 2 * 2, round(side / _SMALLEST) + 1, 2)
        if source >= side
    })  # fmt: skip


def _beyond(pictures: Floats) -> Floats:
    """How much higher the step after each column of float32 [T, H, W] is than those beside it: float32 [W - 3]."""
    steps = np.stack([np.abs(np.diff(picture, axis=1)) for picture in pictures]).mean(axis=(0, 1))
    beyond: Floats = steps[1:-1] - (steps[:-2] + steps[2:]) / 2
    return beyond


def _excess(beyond: Floats, side: float) -> float:
    """Of the best place for blocks of this side, over a place like any other."""
    blocks = int((len(beyond) - 1) / side)
    edges = np.arange(side)[:, None] + np.arange(blocks) * side
    # The median over blocks, so that one edge of the picture's own has no weight.
    places = np.median(beyond[np.rint(edges).astype(int).clip(max=len(beyond) - 1)], axis=1)
    return float(places.max() - np.median(places))
