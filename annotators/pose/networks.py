"""Runs the two BlazePose networks, so that the pose annotator deals with people and pixels, not with tensors.

Bazarevsky et al., "BlazePose: On-device Real-time Body Pose tracking" (2020). The constants are those of the
graphs `pose_detection_cpu`, `pose_detection_to_roi`, `pose_landmarks_to_roi` and
`tensors_to_pose_landmarks_and_segmentation` in google-ai-edge/mediapipe (Apache-2.0), for which the networks
were trained. Coordinates are pixels of the frame with (0, 0) in the corner of the first pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from annotators.networks.tflite import Floats, Network, SquareView, sigmoid, weighted_nms
from annotators.opencv import cv2

_DETECTOR_SIDE = 224
# The feature maps of the detector: cells along a side, anchors in a cell. Strides 8 and 16 have two anchors
# each; stride 32 occurs three times with two anchors each.
_ANCHOR_LAYERS = ((28, 2), (14, 2), (7, 6))
_ROI_SCALE = 1.25
_LANDMARK_SIDE = 256
_LANDMARKS = 39
_HEATMAP_KERNEL = 7
_HEATMAP_CONFIDENT = 0.5
# Landmarks 33 and 34 are the alignment points (hip centre, point on the circle about the body).
_ALIGNMENT = (33, 34)


@dataclass(frozen=True, slots=True)
class Roi:
    """A square in the frame, in pixels; `angle` in radians turns it clockwise about its centre."""

    x: float
    y: float
    side: float
    angle: float

    @classmethod
    def about(cls, hip: Floats, circle: Floats) -> Roi:
        """The square that holds a body, from its hips' centre and the top of the circle about it."""
        dx, dy = (float(difference) for difference in circle - hip)
        # At least one pixel, so that a square always has an area, whatever the network returns.
        side = max(2 * math.hypot(dx, dy) * _ROI_SCALE, 1.0)
        return cls(float(hip[0]), float(hip[1]), side, math.atan2(dx, -dy))

    def overlap(self, other: Roi) -> float:
        """Intersection over union of the two squares, ignoring their angles; 0 to 1."""
        width, height = (
            min(centre + self.side / 2, other_centre + other.side / 2)
            - max(centre - self.side / 2, other_centre - other.side / 2)
            for centre, other_centre in ((self.x, other.x), (self.y, other.y))
        )
        shared = max(width, 0.0) * max(height, 0.0)
        return shared / (self.side**2 + other.side**2 - shared)


@dataclass(frozen=True, slots=True)
class Body:
    """The landmarks of one person.

    points: float32 [33, 3], x and y in pixels and the confidence (0 to 1) that the point is visible.
    flag: the network's confidence (0 to 1) that the square holds a person.
    roi: where the next frame should look for the same person.
    """

    points: Floats
    flag: float
    roi: Roi


class Detector:
    """Finds people: pose_detection.tflite, an SSD over 2254 anchors."""

    def __init__(self, weights: Path) -> None:
        """Load the network from a .tflite file."""
        self._network = Network(weights)
        self._anchors = _make_anchors()

    def __call__(self, frame: NDArray[np.uint8], threshold: float) -> list[tuple[float, Roi]]:
        """The people in `frame` (uint8 [H, W, 3] RGB) scored `threshold` (0 to 1) or more, best first."""
        view = SquareView(frame, _DETECTOR_SIDE)
        raw, logits = self._network(view.image, 0, 1)

        scores = sigmoid(logits[:, 0])
        detected = scores >= threshold
        # Twelve numbers: a box's centre and size, then four points; all but the size relative to the anchor.
        values = raw[detected].reshape(-1, 6, 2)
        values /= np.float32(_DETECTOR_SIDE)
        points = values[:, [0, 2, 3]] + self._anchors[detected][:, None]
        half_sizes = values[:, 1] / np.float32(2)
        boxes = np.concatenate([points[:, 0] - half_sizes, points[:, 0] + half_sizes], axis=1)
        return [
            (score, Roi.about(*view.to_frame(ends)))
            for score, ends in weighted_nms(boxes, points[:, 1:], scores[detected])
        ]


class Landmarker:
    """Finds the 33 body landmarks of the person in a square: pose_landmark_full.tflite."""

    def __init__(self, weights: Path) -> None:
        """Load the network from a .tflite file."""
        self._network = Network(weights)

    def __call__(self, frame: NDArray[np.uint8], roi: Roi) -> Body:
        """The landmarks of the person inside `roi` of `frame` (uint8 [H, W, 3] RGB)."""
        cos, sin = math.cos(roi.angle), math.sin(roi.angle)
        step = roi.side / _LANDMARK_SIDE
        turn = np.array([[cos, -sin], [sin, cos]], np.float32) * np.float32(step)
        corner = np.array([roi.x, roi.y], np.float32) - turn @ np.full(2, _LANDMARK_SIDE / 2, np.float32)
        # warpAffine counts from pixel centres, this module from pixel corners: half a pixel apart in both pictures.
        shift = corner + turn @ np.full(2, 0.5, np.float32) - 0.5
        crop = cv2.warpAffine(
            frame,
            np.column_stack([turn, shift]),
            (_LANDMARK_SIDE, _LANDMARK_SIDE),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
        )
        raw, flag, heatmap = self._network(crop * np.float32(1 / 255), 0, 1, 3)
        values = raw.reshape(_LANDMARKS, 5)
        refined = _refine(values[:, :2], heatmap)
        points = np.empty((_LANDMARKS, 3), np.float32)
        points[:, :2] = refined @ turn.T + corner
        points[:, 2] = sigmoid(values[:, 3:]).min(axis=1)  # visibility, presence
        hip, circle = points[_ALIGNMENT, :2]
        return Body(points[:33], float(flag[0]), Roi.about(hip, circle))


def _make_anchors() -> Floats:
    """Centres of the 2254 anchors, float32 [2254, 2], x and y from 0 to 1 (SsdAnchorsCalculator)."""
    layers = []
    for cells, anchors_per_cell in _ANCHOR_LAYERS:
        y, x = np.mgrid[:cells, :cells].reshape(2, -1)
        layers.append(np.repeat(np.stack([x, y], axis=1) + 0.5, anchors_per_cell, axis=0) / cells)
    return np.concatenate(layers).astype(np.float32)


def _refine(points: Floats, heatmap: Floats) -> Floats:
    """Move each point to the centre of mass of its heatmap close by, where the heatmap is confident.

    points [39, 2] in pixels of the crop; heatmap [S, S, 39], logits. RefineLandmarksFromHeatmapCalculator.
    """
    side = heatmap.shape[0]
    reach = _HEATMAP_KERNEL // 2
    cells = np.floor(points * (side / _LANDMARK_SIDE)).astype(np.int64)
    offsets = np.arange(-reach, reach + 1)
    columns, rows = cells[:, 0, None] + offsets, cells[:, 1, None] + offsets
    within = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None, :]
    logits = heatmap[
        rows.clip(0, side - 1)[:, :, None],
        columns.clip(0, side - 1)[:, None, :],
        np.arange(len(points))[:, None, None],
    ]
    mass = sigmoid(logits) * within
    total = np.maximum(mass.sum(axis=(1, 2)), 1e-9)
    centre = np.stack([(mass.sum(axis=1) * columns).sum(axis=1), (mass.sum(axis=2) * rows).sum(axis=1)], axis=1)
    refined = centre / total[:, None] * (_LANDMARK_SIDE / side)
    centre_inside = ((cells >= 0) & (cells < side)).all(axis=1)
    sure = centre_inside & (mass.max(axis=(1, 2)) >= _HEATMAP_CONFIDENT)
    return np.where(sure[:, None], refined, points).astype(np.float32)
