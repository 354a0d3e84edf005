"""Smooths a body's points in time without lag, and measures how much they still tremble."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# A point is set by a parabola through it and as many points before and after: at 16 fps a tenth of a second each way.
_REACH = 2
# The least weight of an invisible point; with none, a point that is never visible would have no position.
_LEAST = 0.05
# Only points that are seen this surely are measured for trembling.
_SEEN = 0.5


def smooth(points: Floats) -> Floats:
    """float32 [T, K, 3] (x, y, confidence) of consecutive frames, with x and y from parabolas fitted around each frame.

    Savitzky and Golay, "Smoothing and Differentiation of Data by Simplified Least Squares Procedures" (1964), weighted
    by confidence. As the window is symmetric, a point that moves steadily or with a steady acceleration stays
    where it is. Fewer than five frames are returned as they are.
    """
    if len(points) <= 2 * _REACH:
        return points.copy()
    result = points.copy()
    for k in range(len(points)):
        # At the ends the window lies to one side, and is as long.
        first = min(max(k - _REACH, 0), len(points) - 2 * _REACH - 1)
        window = np.arange(first, first + 2 * _REACH + 1)
        powers = (window - k)[:, None].astype(np.float64) ** np.arange(3)
        weights = np.maximum(points[window, :, 2].astype(np.float64), _LEAST)
        # One 3 x 3 system for each point: sum of w * p * p' over the window, and of w * p * (x, y).
        left = np.einsum("wk,wi,wj->kij", weights, powers, powers)
        right = np.einsum("wk,wi,wkc->kic", weights, powers, points[window, :, :2].astype(np.float64))
        result[k, :, :2] = np.linalg.solve(left, right)[:, 0]
    return result


def measure_trembling(points: Floats) -> Floats:
    """How far each seen point lies from the middle between its places one frame before and after: float32 [n], pixels.

    points: float32 [T, K, 3] of consecutive frames. A steady motion gives 0.
    """
    if len(points) < 3:
        return np.zeros(0, np.float32)
    deviation = np.linalg.norm(points[1:-1, :, :2] - (points[:-2, :, :2] + points[2:, :, :2]) / 2, axis=-1)
    visible = np.minimum(np.minimum(points[:-2, :, 2], points[1:-1, :, 2]), points[2:, :, 2]) >= _SEEN
    trembling: Floats = deviation[visible].astype(np.float32)
    return trembling
