"""Draws body keypoints as DWPose does, because pose-conditioned models were trained on such drawings.

The drawing follows `draw_bodypose` of DWPose (IDEA-Research/DWPose, Yang et al. 2023) and ControlNet, which
took skeleton, limb order and colours from OpenPose (Cao et al. 2017, COCO model with 18 points). DWPose does
not scale the width of the sticks with the picture, and neither does this file.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from annotators.opencv import cv2

KEYPOINTS = (
    "nose", "neck",
    "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
    "right_eye", "left_eye", "right_ear", "left_ear",
)  # fmt: skip
"""OpenPose's 18 body keypoints, in order; left and right are the person's own."""

_LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
# One colour a keypoint; limb number i takes the colour of keypoint i.
_COLOURS = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0),
    (0, 255, 0), (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255),
    (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85),
)  # fmt: skip
# DWPose dims the finished limbs over black to 0.6 and puts full-bright joints on top.
_LIMB_COLOURS = tuple(tuple(int(channel * 0.6) for channel in colour) for colour in _COLOURS)
_STICK_WIDTH = 4
_JOINT_RADIUS = 4
_MIN_CONFIDENCE = 0.3


def draw_people(canvas: NDArray[np.uint8], people: NDArray[np.float32]) -> None:
    """Draw every person's skeleton into `canvas` (uint8 [H, W, 3] RGB, black), in place.

    people: float32 [P, 18, 3], x and y in pixels and a confidence from 0 to 1 for each of `KEYPOINTS`. A
    keypoint below confidence 0.3 is not drawn, nor any limb that ends in it.
    """
    visible = people[:, :, 2] >= _MIN_CONFIDENCE
    # Limb i of all people before limb i + 1, as DWPose does: it decides what lies on top.
    for (start, end), colour in zip(_LIMBS, _LIMB_COLOURS, strict=False):
        for person in people[visible[:, start] & visible[:, end]]:
            _draw_limb(canvas, person[start], person[end], colour)
    for joint, colour in enumerate(_COLOURS):
        for x, y, _ in people[visible[:, joint], joint]:
            cv2.circle(canvas, (int(x), int(y)), _JOINT_RADIUS, colour, thickness=-1)


def _draw_limb(
    canvas: NDArray[np.uint8], start: NDArray[np.float32], end: NDArray[np.float32], colour: tuple[int, ...]
) -> None:
    """Fill the ellipse whose long axis runs from `start` to `end`."""
    centre = (start[:2] + end[:2]) / 2
    dx, dy = (float(difference) for difference in end[:2] - start[:2])
    axes = (int(math.hypot(dx, dy) / 2), _STICK_WIDTH)
    angle = int(math.degrees(math.atan2(dy, dx)))
    outline = cv2.ellipse2Poly((int(centre[0]), int(centre[1])), axes, angle, 0, 360, 1)
    cv2.fillConvexPoly(canvas, outline, colour)
