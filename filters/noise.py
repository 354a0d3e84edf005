"""Measures grain: noise that a codec spent bits on and a trainer would learn to make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from annotators.base import Filter, Frames, Signal, Value
from annotators.opencv import cv2
from filters.exposure import grey

# Immerkaer's mask, which does not respond to a plane or to an edge along an axis.
_MASK = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
# Blocks of this side; the calmest share of them shows noise without texture.
_BLOCK, _CALM = 16, 0.2


class Noise(Filter):
    """Estimates the standard deviation of noise in the calmest parts of each frame.

    The mask is that of Immerkaer, "Fast Noise Variance Estimation" (Computer Vision and Image Understanding 64, 1996);
    taking the calmest blocks alone keeps texture out.
    """

    name = "noise"
    version = "1"
    signals: ClassVar[Mapping[str, Signal]] = {
        "noise": Signal("0..255", "deviation of luma noise in the calmest fifth of a frame, median over frames")
    }

    def __call__(self, frames: Frames, fps: float) -> dict[str, Value]:
        return {"noise": float(np.median([_estimate_sigma(picture) for picture in grey(frames)]))}


def _estimate_sigma(picture: NDArray[np.uint8]) -> float:
    strength = np.abs(cv2.filter2D(picture, cv2.CV_32F, _MASK))
    size = (max(1, picture.shape[1] // _BLOCK), max(1, picture.shape[0] // _BLOCK))
    blocks = np.sort(cv2.resize(strength, size, interpolation=cv2.INTER_AREA).ravel())
    calm = blocks[: max(1, int(_CALM * len(blocks)))].mean()
    return float(np.sqrt(np.pi / 2) * calm / 6)
