"""Measures brightness and contrast, which find black, blown-out and flat pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from annotators.base import Filter, Frames, Signal, Value
from annotators.opencv import cv2

# Exposure changes slowly: every fourth frame (4 a second on the default grid) gives the mean to 0.1 grey levels.
STRIDE = 4
# The share of a frame that its highlights take, measured on every fourth pixel of every fourth row.
_BRIGHTEST, _SPARSE = 0.05, 4


def grey(frames: Frames) -> NDArray[np.uint8]:
    """Luma (ITU-R BT.601) of every `STRIDE`-th frame: uint8 [T, H, W, 3] RGB -> uint8 [ceil(T / 4), H, W]."""
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames[::STRIDE]])


class Luma(Filter):
    """Mean luma over the clip, and what its brightest parts reach: a lamp at night reaches as much as the sun."""

    name = "luma"
    version = "2"
    signals: ClassVar[Mapping[str, Signal]] = {
        "luma": Signal("0..255", "mean luma (BT.601) over pixels and frames"),
        "highlights": Signal("0..255", "luma that the brightest twentieth of a frame exceeds, median over frames"),
    }

    def __call__(self, frames: Frames, fps: float) -> dict[str, Value]:
        pictures = grey(frames)
        highlights = np.quantile(pictures[:, ::_SPARSE, ::_SPARSE], 1 - _BRIGHTEST, axis=(1, 2))
        return {"luma": float(pictures.mean()), "highlights": float(np.median(highlights))}


class Contrast(Filter):
    """Spread of luma inside a frame."""

    name = "contrast"
    version = "1"
    signals: ClassVar[Mapping[str, Signal]] = {
        "contrast": Signal(
            "0..128", "root-mean-square contrast: luma's standard deviation in a frame, median over frames"
        )
    }

    def __call__(self, frames: Frames, fps: float) -> dict[str, Value]:
        return {"contrast": float(np.median([np.std(picture) for picture in grey(frames)]))}
