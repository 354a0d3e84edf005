"""The parts that MediaPipe's networks share: how they run, what they see, how their detections are merged.

The algorithms are those of MediaPipe's calculators (google-ai-edge/mediapipe, Apache-2.0), for which its networks were
trained. Coordinates are pixels of the frame with (0, 0) in the corner of the first pixel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotators.opencv import cv2

Floats = NDArray[np.float32]

# Detections that overlap by more than this are one (intersection over union).
_NMS_OVERLAP = 0.3


class Network:
    """One tflite network with one image input, run in one thread (more would change the last digits)."""

    def __init__(self, weights: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter: Any = Interpreter(model_path=str(weights), num_threads=1)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._outputs = [detail["index"] for detail in self._interpreter.get_output_details()]

    def __call__(self, image: Floats, *outputs: int) -> list[Floats]:
        """The outputs of the given positions, without their batch axis."""
        self._interpreter.set_tensor(self._input, image[None])
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(self._outputs[position])[0] for position in outputs]


class SquareView:
    """A frame as a detector sees it: whole, in the middle of a square, with black bars; and the mapping back."""

    def __init__(self, frame: NDArray[np.uint8], side: int) -> None:
        """`frame` uint8 [H, W, 3]; `side` of the square in pixels."""
        height, width = frame.shape[:2]
        scale = side / max(height, width)
        inner_width, inner_height = max(round(width * scale), 1), max(round(height * scale), 1)
        left, top = (side - inner_width) // 2, (side - inner_height) // 2
        # float32 [side, side, 3], -1 to 1; the bars are black, which the networks see as -1.
        self.image: Floats = np.full((side, side, 3), -1, np.float32)
        small = cv2.resize(frame, (inner_width, inner_height), interpolation=cv2.INTER_AREA)
        self.image[top : top + inner_height, left : left + inner_width] = small * np.float32(2 / 255) - 1
        self._offset = np.array([left, top], np.float32) / side
        self._stretch = np.array([width / inner_width, height / inner_height], np.float32) * side

    def to_frame(self, points: Floats) -> Floats:
        """Map points [..., 2] of the square (x and y from 0 to 1) to pixels of the frame."""
        positions: Floats = ((points - self._offset) * self._stretch).astype(np.float32)
        return positions


def weighted_nms(boxes: Floats, points: Floats, scores: Floats) -> list[tuple[float, Floats]]:
    """Merge detections to one (score, points) each: overlapping ones are averaged, weighted by their scores.

    boxes [N, 4] as left, top, right, bottom; points [N, P, 2]; scores [N]. The algorithm WEIGHTED of
    MediaPipe's NonMaxSuppressionCalculator, as introduced by BlazeFace (Bazarevsky et al. 2019).
    """
    detections = []
    remaining = np.argsort(-scores, kind="stable")
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    while remaining.size:
        best = remaining[0]
        sides = np.minimum(boxes[best, 2:], boxes[remaining, 2:]) - np.maximum(boxes[best, :2], boxes[remaining, :2])
        shared = sides.clip(0).prod(axis=1)
        overlapping = shared / np.maximum(areas[best] + areas[remaining] - shared, 1e-9) > _NMS_OVERLAP
        overlapping[0] = True
        weights = scores[remaining[overlapping], None, None]
        detections.append((float(scores[best]), (points[remaining[overlapping]] * weights).sum(axis=0) / weights.sum()))
        remaining = remaining[~overlapping]
    return detections


def sigmoid(x: Floats) -> Floats:
    """The logistic function of float32, clipped where it would overflow."""
    y: Floats = 1 / (1 + np.exp(-x.clip(-80, 80)))
    return y
