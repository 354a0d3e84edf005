"""Measures what the camera does: stands still, pans, zooms, rolls or shakes, from the motion of the whole picture."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from annotators.base import Filter, Frames, Signal, Value
from annotators.opencv import cv2

# The motion of the whole picture is coarse: it is measured at this length of the longer side, in pixels.
_SIDE = 320
# Corners: how many at most, the least quality relative to the best one's, and the least distance between two. Each cell
# of a grid gives the same number, so that one rich object does not outvote a plain background.
_MAX_CORNERS, _QUALITY, _DISTANCE = 1000, 0.002, 6
_CELLS, _PER_CELL = 5, 8
# Corners that one similarity must explain, as a number and as a share; fewer say nothing about the camera.
_MIN_CORNERS, _MIN_INLIER_SHARE = 12, 0.35
# A pair of frames across a flash or a cut has no such similarity; a clip needs one for this share of its pairs.
_MIN_MEASURED_SHARE = 0.6
# A camera's course is its motion smoothed over this many seconds; the remainder is shake. To name the motion it is
# smoothed over the second number, so that a hand's slow sway is not a pan.
_SMOOTH_S, _STEADY_S = 0.5, 1.0
# A clip with more motion than this is named by it. Pan and shake are shares of the frame's diagonal (a second; from
# frame to frame), zoom is the share by which the picture grows in a second, roll is in degrees a second.
PAN, ZOOM, ROLL, SHAKE = 0.02, 0.02, 2.0, 0.003
# Growth and rotation move the picture most at its corners. Their effect halfway there, at this share of the diagonal
# from the centre, is compared with a shift.
_LEVER_ARM = 0.25


class Camera(Filter):
    """Fits a similarity (shift, rotation, scale) to corners tracked from frame to frame, and sorts its course.

    Corners (Shi and Tomasi, CVPR 1994) are tracked by pyramidal Lucas-Kanade and the similarity is found by RANSAC, so
    that an object that moves in front of a larger background does not count.
    """

    name = "camera"
    version = "4"
    signals: ClassVar[Mapping[str, Signal]] = {
        "camera": Signal("", "what the camera does: still, pan, zoom, roll or shake; there and back counts", "str"),
        "camera_pan": Signal("px/frame", "steady shift of the whole picture: length of the mean over the clip"),
        "camera_zoom": Signal("%/s", "growth of the whole picture, negative when it shrinks: mean over the clip"),
        "camera_roll": Signal("deg/s", "clockwise rotation of the whole picture: mean over the clip"),
        "camera_shake": Signal("px/frame", "unsteady shift of the whole picture: rms around the smoothed course"),
    }

    def __call__(self, frames: Frames, fps: float) -> dict[str, Value]:
        scale = min(1.0, _SIDE / max(frames.shape[1:3]))
        motion, repeated = _measure_motion(frames, scale)
        if not len(motion) or np.isnan(motion[:, 0]).mean() > 1 - _MIN_MEASURED_SHARE:
            return dict.fromkeys(self.signals)
        steps = np.stack([_fill_gaps(column) for column in motion.T], axis=1)
        shift, growth, turn = steps[:, :2] / scale, steps[:, 2], np.degrees(steps[:, 3])
        diagonal = float(np.hypot(*frames.shape[1:3]))
        pan = float(np.hypot(*shift.mean(axis=0)))
        zoom = float(np.expm1(growth.mean() * fps))
        roll = float(turn.mean() * fps)
        # A repeated frame does not mean that the camera stood still.
        shake = (
            _measure_shake(np.column_stack([shift, steps[:, 3]])[~repeated], diagonal, fps)
            if not repeated.all()
            else 0.0
        )
        kind = _classify_motion(np.column_stack([shift, growth, turn]), shake, diagonal, fps)
        return {
            "camera": kind, "camera_pan": pan, "camera_zoom": 100 * zoom, "camera_roll": roll, "camera_shake": shake,
        }  # fmt: skip


def _classify_motion(steps: NDArray[np.float64], shake: float, diagonal: float, fps: float) -> str:
    """What the camera does. `steps`: float64 [T, 4], shift in pixels, logarithm of the scale, and degrees; `shake` and
    `diagonal` in pixels."""
    if shake / diagonal > SHAKE:
        return "shake"
    x, y, growth, turn = (_smooth(column, round(_STEADY_S * fps)) for column in steps.T)
    pan_speed = float(np.hypot(x, y).mean()) * fps / diagonal
    zoom_speed = float(np.expm1(np.abs(growth).mean() * fps))
    roll_speed = float(np.abs(turn).mean()) * fps
    # How far each motion moves the picture, as a share of the diagonal a second, 0 below its threshold. A slow zoom
    # beside a faster pan is how a lens shows a pan, or a camera that is carried past something.
    speeds = {
        "pan": pan_speed * (pan_speed > PAN),
        "zoom": _LEVER_ARM * zoom_speed * (zoom_speed > ZOOM),
        "roll": _LEVER_ARM * np.radians(roll_speed) * (roll_speed > ROLL),
    }
    dominant_motion = max(speeds, key=lambda name: speeds[name])
    return dominant_motion if speeds[dominant_motion] else "still"


def _measure_shake(steps: NDArray[np.float64], diagonal: float, fps: float) -> float:
    """How far the picture deviates from its course, in pixels, rms; `steps`: float64 [T, 3], shift and radians."""
    course = np.stack([_smooth(column, round(_SMOOTH_S * fps)) for column in steps.T], axis=1)
    deviation = _remove_judder((steps - course)[:, :2], course[:, :2])
    rotation_px = (steps - course)[:, 2] * _LEVER_ARM * diagonal
    return float(np.sqrt(((deviation**2).sum(axis=1) + rotation_px**2).mean()))


def _remove_judder(deviation: NDArray[np.float64], course: NDArray[np.float64]) -> NDArray[np.float64]:
    """Remove from float64 [T, 2] the judder that a change of frame rate makes of a steady course.

    The grid shows the source's nearest frame, so a pan advances by one or two of the source's steps, or by none, in
    turn: up to the course's own speed too far or too short, along it.
    """
    speed = np.linalg.norm(course, axis=1)
    along = course / np.maximum(speed, 1e-9)[:, None]
    forward = (deviation * along).sum(axis=1)
    # A deviation that lasts longer than three frames is not judder.
    judder = np.clip(forward - _smooth(forward, 3), -speed, speed)
    remaining: NDArray[np.float64] = deviation - judder[:, None] * along
    return remaining


def _measure_motion(frames: Frames, scale: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Shift (x, y) of the picture's centre, logarithm of its scale and clockwise radians from frame to frame: float64
    [T-1, 4], in pixels of the shrunk picture, NaN where no similarity was found; and where a frame is repeated."""
    steps = np.full((len(frames) - 1, 4), np.nan)
    repeated = np.zeros(len(frames) - 1, bool)
    pictures = (
        cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        for frame in frames
    )
    for index, (before, after) in enumerate(pairwise(pictures)):
        repeated[index] = np.array_equal(before, after)
        corners = _find_corners(before)
        if len(corners) < _MIN_CORNERS:
            continue
        moved, status, _ = cv2.calcOpticalFlowPyrLK(before, after, corners, None)
        tracked = status[:, 0] == 1
        if tracked.sum() < _MIN_CORNERS:
            continue
        matrix, inliers = cv2.estimateAffinePartial2D(
            corners[tracked], moved[tracked], method=cv2.RANSAC, ransacReprojThreshold=1.0
        )
        if matrix is None or inliers.sum() < max(_MIN_CORNERS, _MIN_INLIER_SHARE * len(corners)):
            continue
        height, width = before.shape
        centre = np.array([width / 2, height / 2])
        shift = matrix[:, :2] @ centre + matrix[:, 2] - centre
        steps[index] = *shift, 0.5 * np.log(np.linalg.det(matrix[:, :2])), np.arctan2(matrix[1, 0], matrix[0, 0])
    return steps, repeated


def _find_corners(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The best corners of each cell: float32 [n, 1, 2]."""
    corners = cv2.goodFeaturesToTrack(picture, _MAX_CORNERS, _QUALITY, _DISTANCE)
    if corners is None:
        return np.empty((0, 1, 2), np.float32)
    column, row = (corners[:, 0] * _CELLS // picture.shape[::-1]).astype(int).T
    cell = row * _CELLS + column
    # They are sorted by quality: a corner's rank is how many of its cell come before it.
    rank = np.array([np.count_nonzero(cell[:index] == cell[index]) for index in range(len(cell))])
    best: NDArray[np.float32] = corners[rank < _PER_CELL]
    return best


def _fill_gaps(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fill gaps (NaN) by linear interpolation."""
    valid = np.flatnonzero(~np.isnan(values))
    return np.interp(np.arange(len(values)), valid, values[valid])


def _smooth(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """A running mean over `window` values (made odd), over fewer at the ends."""
    reach = max(1, window // 2)
    total = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - reach, 0)
    high = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    smoothed: NDArray[np.float64] = (total[high] - total[low]) / (high - low)
    return smoothed
