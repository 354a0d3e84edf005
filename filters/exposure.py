"""How bright and how contrasty a clip is: the two signals that find black, blown-out and flat pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from annotators.base import Frames, Signal, Value
from annotators.opencv import cv2

# Exposure changes slowly: every fourth frame (4 a second on the default grid) gives the mean to 0.1 grey levels.
STRIDE = 4


def grey(frames: Frames) -> NDArray[np.uint8]:
    """Luma (ITU-R BT.601) of every `STRIDE`-th frame: uint8 [T, H, W, 3] RGB -> uint8 [ceil(T / 4), H, W]."""
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames[::STRIDE]])


class Luma:
    """Mean luma over the clip."""

    name = "luma"
    version = "1"
    signals: ClassVar[Mapping[str, Signal]] = {"luma": Signal("0..255", "mean luma (BT.601) over pixels and frames")}

    def __call__(self, frames: Frames, fps: float) -> dict[str, Value]:
        return {"luma": float(grey(frames).mean())}


class Contrast:
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
