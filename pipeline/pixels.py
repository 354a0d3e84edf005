"""Planar RGB as the packed array that annotators and filters work on."""

from __future__ import annotations

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.decode import planes


def packed(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """A frame in planar RGB as uint8 [H, W, 3]; `VideoFrame.to_ndarray` takes four times as long."""
    return np.asarray(cv2.merge(planes(frame)), np.uint8)
