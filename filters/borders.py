"""Measures borders that are not picture: letter- and pillarbox bars, and sides filled with a blurred copy of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from annotators.base import Filter, Frames, Signal, Value
from annotators.opencv import cv2
from filters import bars
from filters.exposure import STRIDE, grey

# Fine detail is measured by a Laplacian over this many columns at a time.
_STRIP = 4
# A blurred side has less than this share of the picture's detail beside it, and more than nothing (levels of 255).
_BLURRED, _SOMETHING = 0.2, 0.4
# Or less than this share, where the straight seam between them has this many times the picture's detail: a side that is
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


class Borders(Filter):
    """Measures how much of the frame is border, by kind."""

    name = "borders"
    version = "1"
    signals: ClassVar[Mapping[str, Signal]] = {
        "bars": Signal("0..1", "share of the frame that letter- or pillarbox bars take"),
        "blurred_sides": Signal("0..1", "share of the frame that blurred sides beside a sharp picture take"),
    }

    def __call__(self, frames: Frames, fps: float) -> dict[str, Value]:
        height, width = frames.shape[1:3]
        box = bars.find_content(frames[::STRIDE])
        left, top, right, bottom = box or (0, 0, width, height)
        content_share = (right - left) * (bottom - top) / (width * height)
        pictures = grey(frames)[:, top:bottom, left:right]
        sides = max(_blurred_share(pictures), _blurred_share(pictures.swapaxes(1, 2)))
        return {"bars": 1 - content_share, "blurred_sides": sides * content_share}


def _blurred_share(pictures: NDArray[np.uint8]) -> float:
    """Share of the columns of uint8 [T, H, W] that are blurred on both sides of a sharp middle; else 0."""
    detail = np.zeros(pictures.shape[2])
    for picture in pictures:
        detail += np.abs(cv2.Laplacian(np.ascontiguousarray(picture), cv2.CV_32F)).mean(axis=0)
    profile = detail[: len(detail) // _STRIP * _STRIP].reshape(-1, _STRIP).mean(axis=1) / len(pictures)
    left, right = _count_blurred_strips(profile), _count_blurred_strips(profile[::-1])
    if not left or not right or abs(left - right) > max(2, _UNEVEN * max(left, right)):
        return 0.0
    copied = _is_copy(pictures.mean(axis=0), left * _STRIP, pictures.shape[2] - right * _STRIP)
    return (left + right) / len(profile) if copied else 0.0


def _is_copy(picture: NDArray[np.float64], left: int, right: int) -> bool:
    """Whether the columns outside left..right are an enlarged copy of those inside; sky beside a tower is not."""
    height, width = picture.shape
    middle = picture[:, left:right]
    scale = width / (right - left)
    # Enlarged until it fills the frame, cropped at top and bottom; or stretched in width only.
    tall = cv2.resize(middle, (width, round(height * scale)), interpolation=cv2.INTER_AREA)
    top = (tall.shape[0] - height) // 2
    filled = (tall[top : top + height], cv2.resize(middle, (width, height), interpolation=cv2.INTER_AREA))
    small = (max(2, _COARSE * width // max(width, height)), max(2, _COARSE * height // max(width, height)))
    original, *fills = (cv2.resize(image, small, interpolation=cv2.INTER_AREA) for image in (picture, *filled))
    first, last = math.ceil(left * small[0] / width), right * small[0] // width
    border_columns = np.r_[0 : max(1, first - 1), min(last + 1, small[0] - 1) : small[0]]
    return any(_correlation(original[:, border_columns], fill[:, border_columns]) > _ALIKE for fill in fills)


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    first, second = first - first.mean(), second - second.mean()
    return float((first * second).sum() / max(np.sqrt((first**2).sum() * (second**2).sum()), 1e-9))


def _count_blurred_strips(profile: NDArray[np.float64]) -> int:
    """Count the blurred strips from the first one up to a seam; 0 where there is none."""
    count = len(profile)
    for position in range(max(3, round(_LEAST * count)), round(_MOST * count)):
        outside_detail = float(np.quantile(profile[: position - 1], 0.97))
        inside_detail = float(np.median(profile[position + 2 : count - position]))
        seam = (
            profile[position : position + 2].max() > _SEAM * inside_detail and outside_detail < _SOFTER * inside_detail
        )
        step = outside_detail < _BLURRED * min(inside_detail, profile[position : position + _BESIDE].min())
        if outside_detail > _SOMETHING and (seam or step):
            return position
    return 0
