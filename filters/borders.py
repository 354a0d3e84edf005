"""Borders that are no picture: letter- and pillarbox bars, and sides filled with a blurred copy of the picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from annotators.base import Frames, Signal, Value
from annotators.opencv import cv2
from filters import bars
from filters.exposure import STRIDE, grey

# Fine detail is measured by a Laplacian over this many columns at a time.
_STRIP = 4
# A blurred side has less than this share of the picture's detail beside it, and more than nothing (levels of 255).
_BLURRED, _SOMETHING = 0.2, 0.4
# Or less than this share, where the straight seam between them has more detail than the picture by this factor: what is
# merely out of focus has no seam.
_SOFTER, _SEAM = 0.45, 2.5
# Strips beside the border that the picture's detail is measured in.
_BESIDE = 8
# A side takes at least and at most this share of the frame.
_LEAST, _MOST = 0.06, 0.42
# Both sides are alike in width, up to this share of the wider one or two strips.
_UNEVEN = 0.15
# The sides are compared with the picture at this length of the longer side, where blur makes no difference; copies
# correlate by more than this.
_COARSE, _ALIKE = 24, 0.5


class Borders:
    """Measures how much of the frame is border, by what it is made of."""

    name = "borders"
    version = "1"
    signals: ClassVar[Mapping[str, Signal]] = {
        "bars": Signal("0..1", "share of the frame that letter- or pillarbox bars take"),
        "blurred_sides": Signal("0..1", "share of the frame that blurred sides beside a sharp picture take"),
    }

    def __call__(self, frames: Frames, fps: float) -> dict[str, Value]:
        height, width = frames.shape[1:3]
        box = bars.content(frames[::STRIDE])
        left, top, right, bottom = box or (0, 0, width, height)
        inside = (right - left) * (bottom - top) / (width * height)
        pictures = grey(frames)[:, top:bottom, left:right]
        sides = max(_blurred(pictures), _blurred(pictures.swapaxes(1, 2)))
        return {"bars": 1 - inside, "blurred_sides": sides * inside}


def _blurred(pictures: NDArray[np.uint8]) -> float:
    """Share of the columns of uint8 [T, H, W] that are blurred on both sides of a sharp middle; else 0."""
    detail = np.zeros(pictures.shape[2])
    for picture in pictures:
        detail += np.abs(cv2.Laplacian(np.ascontiguousarray(picture), cv2.CV_32F)).mean(axis=0)
    profile = detail[: len(detail) // _STRIP * _STRIP].reshape(-1, _STRIP).mean(axis=1) / len(pictures)
    left, right = _side(profile), _side(profile[::-1])
    if not left or not right or abs(left - right) > max(2, _UNEVEN * max(left, right)):
        return 0.0
    copied = _copied(pictures.mean(axis=0), left * _STRIP, pictures.shape[2] - right * _STRIP)
    return (left + right) / len(profile) if copied else 0.0


def _copied(picture: NDArray[np.float64], left: int, right: int) -> bool:
    """Whether the columns beside left..right show those between, enlarged: sky beside a tower does not."""
    height, width = picture.shape
    middle = picture[:, left:right]
    scale = width / (right - left)
    # Enlarged until it fills the frame, what is too high cut off; or pulled in one direction alone.
    tall = cv2.resize(middle, (width, round(height * scale)), interpolation=cv2.INTER_AREA)
    top = (tall.shape[0] - height) // 2
    filled = (tall[top : top + height], cv2.resize(middle, (width, height), interpolation=cv2.INTER_AREA))
    small = (max(2, _COARSE * width // max(width, height)), max(2, _COARSE * height // max(width, height)))
    seen, *fills = (cv2.resize(one, small, interpolation=cv2.INTER_AREA) for one in (picture, *filled))
    first, last = math.ceil(left * small[0] / width), right * small[0] // width
    beside = np.r_[0 : max(1, first - 1), min(last + 1, small[0] - 1) : small[0]]
    return any(_correlation(seen[:, beside], fill[:, beside]) > _ALIKE for fill in fills)


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    one, other = one - one.mean(), other - other.mean()
    return float((one * other).sum() / max(np.sqrt((one**2).sum() * (other**2).sum()), 1e-9))


def _side(profile: NDArray[np.float64]) -> int:
    """How many strips from the first on are blurred, up to a seam; 0 where there is none."""
    count = len(profile)
    for at in range(max(3, round(_LEAST * count)), round(_MOST * count)):
        outside = float(np.quantile(profile[: at - 1], 0.97))
        inside = float(np.median(profile[at + 2 : count - at]))
        seam = profile[at : at + 2].max() > _SEAM * inside and outside < _SOFTER * inside
        step = outside < _BLURRED * min(inside, profile[at : at + _BESIDE].min())
        if outside > _SOMETHING and (seam or step):
            return at
    return 0
