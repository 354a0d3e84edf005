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
# The edges of this many blocks are needed to tell a grid from a fence.
_LEAST = 6


class Blockiness:
    """Steps between columns (rows) that lie eight apart, beyond those between their neighbours.

    A step counts as far as it is higher than the mean of the two beside it, as in Wang, Bovik and Evans, "Blind
    Measurement of Blocking Artifacts in Images" (ICIP 2000). The lower one of both directions is the signal, because a
    grid has both and a fence has one. Blocks of a source that was scaled lie otherwise, and are not seen.
    """

    name = "blockiness"
    version = "1"
    signals: ClassVar[Mapping[str, Signal]] = {
        "blockiness": Signal("0..255", "how much higher steps on an 8-pixel grid are than those beside them")
    }

    def __call__(self, frames: Frames, fps: float) -> dict[str, Value]:
        pictures = grey(frames).astype(np.float32)
        if min(pictures.shape[1:]) < _SIDE * _LEAST:
            return {"blockiness": None}
        return {"blockiness": min(_excess(pictures), _excess(pictures.swapaxes(1, 2)))}


def _excess(pictures: Floats) -> float:
    """Of the columns of float32 [T, H, W]."""
    steps = np.stack([np.abs(np.diff(picture, axis=1)) for picture in pictures]).mean(axis=(0, 1))
    # Beyond both neighbours: float32 [W - 3].
    beyond = steps[1:-1] - (steps[:-2] + steps[2:]) / 2
    whole = beyond[: len(beyond) // _SIDE * _SIDE].reshape(-1, _SIDE)
    # The median over blocks, so that one edge of the picture's own has no weight.
    phases = np.median(whole, axis=0)
    return float(phases.max() - np.median(phases))
