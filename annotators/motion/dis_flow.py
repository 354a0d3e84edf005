"""Computes optical flow by DIS (Kroeger et al., "Fast Optical Flow using Dense Inverse Search", 2016), by OpenCV."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from annotators.base import Picture
from annotators.opencv import cv2

# On a picture with a side under so many pixels, DIS raises or crashes the process (OpenCV 5.0).
_SMALLEST = 16


class Dis:
    """The estimator; it keeps nothing from one pair of frames to the next."""

    def __init__(self) -> None:
        """Make it, with the preset MEDIUM."""
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def __call__(self, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.float32]:
        """How far each pixel of `before` moves: float32 [H, W, 2], x and y in pixels; both from `to_grey`."""
        height, width = before.shape
        edges = (0, max(_SMALLEST - height, 0), 0, max(_SMALLEST - width, 0))
        if any(edges):
            before, after = (cv2.copyMakeBorder(picture, *edges, cv2.BORDER_REPLICATE) for picture in (before, after))
        flow: NDArray[np.float32] = self._dis.calc(before, after, None)
        return flow[:height, :width]


def to_grey(frame: Picture) -> NDArray[np.uint8]:
    """A frame, uint8 [H, W, 3] RGB, as uint8 [H, W]."""
    luma: NDArray[np.uint8] = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return luma
