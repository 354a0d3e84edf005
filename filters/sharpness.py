"""Measures how sharp a clip is: finds defocus and upscaled pictures, which a trainer would learn to imitate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from annotators.base import Filter, Frames, Signal, Value
from annotators.opencv import cv2
from filters.exposure import grey

# Every second of the pictures that exposure uses: sharpness changes slowly as well.
_STEP = 2
# The strongest detail is what is in focus: all but this share of the pixels has less.
_STRONGEST = 0.01
# Detail of fewer levels of 255 is noise, or a faint word on black.
_MIN_DETAIL = 4.0


class Sharpness(Filter):
    """Compares the finest detail with detail four times as coarse.

    Both are levels of a Laplacian pyramid (Burt and Adelson, IEEE Transactions on Communications 31, 1983), of which
    the strongest hundredth counts, so that a blurred background does no harm. An edge in focus is equally strong in
    both, whatever its contrast; blur removes the finest detail first.
    """

    name = "sharpness"
    version = "2"
    signals: ClassVar[Mapping[str, Signal]] = {
        "sharpness": Signal("ratio", "finest detail over detail four times as coarse, median over frames")
    }

    def __call__(self, frames: Frames, fps: float) -> dict[str, Value]:
        ratios = [ratio for ratio in map(_detail_ratio, grey(frames)[::_STEP]) if ratio is not None]
        # A picture without detail cannot be sharp or blurred: the signal does not apply.
        return {"sharpness": float(np.median(ratios)) if ratios else None}


def _detail_ratio(picture: NDArray[np.uint8]) -> float | None:
    strengths = []
    level = picture.astype(np.float32)
    for _ in range(3):
        smooth = cv2.GaussianBlur(level, (0, 0), 1.0)
        strengths.append(float(np.quantile(np.abs(level - smooth), 1 - _STRONGEST)))
        level = cv2.resize(smooth, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    finest, _, coarse = strengths
    return finest / coarse if coarse >= _MIN_DETAIL else None
