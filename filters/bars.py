"""Finds bars around a picture, carefully: a dark scene or a title on black must not be cropped."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Box = tuple[int, int, int, int]

# A bar has one colour, up to coding noise, in all of its pixels and in all frames (levels of 255).
_NOISE = 14
# Where a bar ends the picture must differ from it by this much, at this share of the edge, in some frame.
_STEP, _EDGE_SHARE = 20, 0.6
# Rows within which the step must come after the last constant row: coding noise of the picture reaches into
# a bar by a block of 8 rows and the filter around it.
_EDGE = 12
# A bar takes at least this share of a side, and the picture between two bars at least this share.
_LEAST_BAR, _LEAST_PICTURE = 0.02, 0.4
# Opposite bars are alike: their widths differ by at most this share of the wider one, or by 4 pixels.
_UNEVEN = 0.25
# The soft border between bar and picture that is cut off too, in pixels.
_SOFT = 1


def find_content(pictures: Iterable[NDArray[np.uint8]]) -> Box | None:
    """Find the part inside bars that all `pictures` share, (x0, y0, x1, y1), or None where there are none.

    `pictures` are uint8 [H, W, 3] RGB, all of one size, spread over a video. Only pairs of bars count, above
    and below or left and right, of one constant colour, with a sharp edge against the picture.
    """
    low: NDArray[np.uint8] | None = None
    high: NDArray[np.uint8] | None = None
    for picture in pictures:
        low = picture if low is None else np.minimum(low, picture)
        high = picture if high is None else np.maximum(high, picture)
    if low is None or high is None:
        return None
    height, width = low.shape[:2]
    top, bottom = _find_pair(low, high)
    left, right = _find_pair(low[top:bottom].swapaxes(0, 1), high[top:bottom].swapaxes(0, 1))
    box = (left, top, right, bottom)
    return None if box == (0, 0, width, height) else box


def _find_pair(low: NDArray[np.uint8], high: NDArray[np.uint8]) -> tuple[int, int]:
    """The first row of the picture and the one after its last, from per-pixel extremes [rows, n, 3]."""
    rows = len(low)
    first, first_colour = _find_bar(low, high)
    last, last_colour = _find_bar(low[::-1], high[::-1])
    uneven = abs(first - last) > max(4, _UNEVEN * max(first, last))
    alike = np.abs(first_colour - last_colour).max() <= _NOISE
    thin = min(first, last) < _LEAST_BAR * rows
    if uneven or thin or not alike or rows - first - last < _LEAST_PICTURE * rows:
        return 0, rows
    return first + _SOFT, rows - last - _SOFT


def _find_bar(low: NDArray[np.uint8], high: NDArray[np.uint8]) -> tuple[int, NDArray[np.float64]]:
    """How many rows from the first on are bar, 0 if no sharp edge ends it, and its colour float64[3]."""
    lows = np.minimum.accumulate(low.min(axis=1))
    highs = np.maximum.accumulate(high.max(axis=1))
    constant = np.all(highs.astype(int) - lows <= _NOISE, axis=1)
    count = len(low) if constant.all() else int(np.argmin(constant))
    colour = (lows[max(count - 1, 0)].astype(float) + highs[max(count - 1, 0)]) / 2
    border = slice(count, count + _EDGE)
    steps = np.maximum(high[border] - colour, colour - low[border]).max(axis=2) > _STEP
    edge = np.flatnonzero(steps.mean(axis=1) >= _EDGE_SHARE)
    return (count + int(edge[0]) if count and len(edge) else 0), colour
