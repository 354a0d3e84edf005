"""Planar RGB, which swscale makes in half the time of packed RGB, as the packed array that everyone works on."""

from __future__ import annotations

import av
import cv2
import numpy as np
from numpy.typing import NDArray

PLANAR = "gbrp"


def packed(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """A frame in the `PLANAR` format as uint8 [H, W, 3] RGB; `VideoFrame.to_ndarray` takes four times as long."""
    green, blue, red = (
        np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]
        for plane in frame.planes
    )
    return np.asarray(cv2.merge((red, green, blue)), np.uint8)
