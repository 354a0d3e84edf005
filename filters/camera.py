"""What the camera does: stands still, pans, zooms or shakes, told from how the picture as a whole moves."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from annotators.base import Frames, Signal, Value
from annotators.opencv import cv2

# The picture's motion as a whole is coarse: it is measured at this length of the longer side, in pixels.
_SIDE = 320
# Corners: how many at most, the least quality relative to the best one's, and the least distance between two. Each cell
# of a grid gives the same number, so that one rich object does not outvote a plain background.
_MOST, _QUALITY, _DISTANCE = 1000, 0.002, 6
_CELLS, _PER_CELL = 5, 8
# Corners that one similarity must explain, as a number and as a share; fewer say nothing about a camera.
_LEAST, _SHARE = 12, 0.35
# A pair of frames that a flash or a cut divides has no such similarity; a clip needs it for this share of its pairs.
_MEASURED = 0.6
# A camera's course is its motion smoothed over this many seconds; what is left is shake. For its kind the course is
# smoothed over as many more, so that a hand's slow sway is no pan.
_SMOOTH_S, _STEADY_S = 0.5, 1.0
# From here on a clip is called by its motion. Pan and shake are shares of the frame's diagonal (a second; from frame to
# frame), zoom is the share by which the picture grows in a second, roll is in degrees a second.
PAN, ZOOM, ROLL, SHAKE = 0.02, 0.02, 2.0, 0.003
# Growth and rotation move the picture most at its corners. What they do halfway there, at this share of the diagonal
# from the centre, is held against a shift.
_ARM = 0.25


class Camera:
    """Fits a similarity (shift, rotation, scale) to corners tracked from frame to frame, and sorts its course.

    Corners (Shi and Tomasi, CVPR 1994) are tracked by pyramidal Lucas-Kanade and the similarity is found by RANSAC, so
    that what moves by itself in front of a larger background has no say.
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
        moved, repeated = _moved(frames, scale)
        if not len(moved) or np.isnan(moved[:, 0]).mean() > 1 - _MEASURED:
            return dict.fromkeys(self.signals)
        steps = np.stack([_filled(column) for column in moved.T], axis=1)
        shift, growth, turn = steps[:, :2] / scale, steps[:, 2], np.degrees(steps[:, 3])
        diagonal = float(np.hypot(*frames.shape[1:3]))
        pan = float(np.hypot(*shift.mean(axis=0)))
        zoom = float(np.expm1(growth.mean() * fps))
        roll = float(turn.mean() * fps)
        # A frame that is shown again is no standstill of the camera.
        shake = _shake(np.column_stack([shift, steps[:, 3]])[~repeated], diagonal, fps) if not repeated.all() else 0.0
        window = round(_STEADY_S * fps)
        steady = [_smooth(column, window) for column in (*shift.T, growth, turn)]
        panned = float(np.hypot(steady[0], steady[1]).mean()) * fps / diagonal
        zoomed = float(np.expm1(np.abs(steady[2]).mean() * fps))
        rolled = float(np.abs(steady[3]).mean()) * fps
        # How far each moves the picture, as a share of the diagonal a second, of those that are a motion of the camera.
        # A slow zoom beside a faster pan is how a pan looks through a lens, or a camera that is carried past something.
        ways = {
            "pan": panned * (panned > PAN),
            "zoom": _ARM * zoomed * (zoomed > ZOOM),
            "roll": _ARM * np.radians(rolled) * (rolled > ROLL),
        }
        furthest = max(ways, key=lambda name: ways[name])
        kind = "shake" if shake / diagonal > SHAKE else furthest if ways[furthest] else "still"
        return {
            "camera": kind, "camera_pan": pan, "camera_zoom": 100 * zoom, "camera_roll": roll, "camera_shake": shake,
        }  # fmt: skip


def _shake(steps: NDArray[np.float64], diagonal: float, fps: float) -> float:
    """How far the picture moves beside its course, in pixels, rms; `steps`: float64 [T, 3], shift and radians."""
    course = np.stack([_smooth(column, round(_SMOOTH_S * fps)) for column in steps.T], axis=1)
    rest = _without_judder((steps - course)[:, :2], course[:, :2])
    turned = (steps - course)[:, 2] * _ARM * diagonal
    return float(np.sqrt(((rest**2).sum(axis=1) + turned**2).mean()))


def _without_judder(rest: NDArray[np.float64], course: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is left of float64 [T, 2] beside what another frame rate makes of a steady course.

    The grid shows the source's nearest frame, so a pan goes on by one or two of its steps, or by none, in turn: by as
    much as the course itself too far or too short, along it.
    """
    speed = np.linalg.norm(course, axis=1)
    along = course / np.maximum(speed, 1e-9)[:, None]
    forward = (rest * along).sum(axis=1)
    # What goes on for longer than three frames is no judder.
    judder = np.clip(forward - _smooth(forward, 3), -speed, speed)
    left: NDArray[np.float64] = rest - judder[:, None] * along
    return left


def _moved(frames: Frames, scale: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Shift (x, y) of the picture's centre, logarithm of its scale and clockwise radians from frame to frame: float64
    [T-1, 4], in pixels of the shrunk picture, NaN where no similarity was found; and where a frame is shown again."""
    steps = np.full((len(frames) - 1, 4), np.nan)
    repeated = np.zeros(len(frames) - 1, bool)
    pictures = (
        cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        for frame in frames
    )
    for index, (before, after) in enumerate(pairwise(pictures)):
        repeated[index] = np.array_equal(before, after)
        corners = _corners(before)
        if len(corners) < _LEAST:
            continue
        moved, found, _ = cv2.calcOpticalFlowPyrLK(before, after, corners, None)
        tracked = found[:, 0] == 1
        if tracked.sum() < _LEAST:
            continue
        matrix, inliers = cv2.estimateAffinePartial2D(
            corners[tracked], moved[tracked], method=cv2.RANSAC, ransacReprojThreshold=1.0
        )
        if matrix is None or inliers.sum() < max(_LEAST, _SHARE * len(corners)):
            continue
        height, width = before.shape
        centre = np.array([width / 2, height / 2])
        shift = matrix[:, :2] @ centre + matrix[:, 2] - centre
        steps[index] = *shift, 0.5 * np.log(np.linalg.det(matrix[:, :2])), np.arctan2(matrix[1, 0], matrix[0, 0])
    return steps, repeated


def _corners(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The best corners of each cell: float32 [n, 1, 2]."""
    corners = cv2.goodFeaturesToTrack(picture, _MOST, _QUALITY, _DISTANCE)
    if corners is None:
        return np.empty((0, 1, 2), np.float32)
    column, row = (corners[:, 0] * _CELLS // picture.shape[::-1]).astype(int).T
    cell = row * _CELLS + column
    # They come in the order of their quality: a corner's rank is how many of its cell came before.
    rank = np.array([np.count_nonzero(cell[:index] == cell[index]) for index in range(len(cell))])
    best: NDArray[np.float32] = corners[rank < _PER_CELL]
    return best


def _filled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaps closed by straight lines between what is known."""
    known = np.flatnonzero(~np.isnan(values))
    return np.interp(np.arange(len(values)), known, values[known])


def _smooth(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """A running mean over `window` values (made odd), of fewer at the ends."""
    half = max(1, window // 2)
    total = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    smoothed: NDArray[np.float64] = (total[high] - total[low]) / (high - low)
    return smoothed
