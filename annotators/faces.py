"""Finds faces: whether a clip shows people close enough to recognize, for captions, privacy and face-driven tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from annotators import weights
from annotators.base import Annotation, Annotator, Frames, Signal, Weight
from annotators.networks.tflite import Floats, Network, SquareView, sigmoid, weighted_nms

_SIDE = 192
# One anchor in the centre of each cell of a grid.
_CELLS = 48
# The least score of a face. Measured: 0.6, MediaPipe's own threshold, finds faces in clouds.
_SURE = 0.7
# Every fourth frame is examined: a face that is seen for less than a quarter of a second does not matter.
_STEP = 4


class Faces(Annotator):
    """Finds faces by BlazeFace, the full-range sparse network, in every fourth frame.

    Bazarevsky et al., "BlazeFace: Sub-millisecond Neural Face Detection on Mobile GPUs" (2019); the decoding is that of
    MediaPipe's graph face_detection_full_range. data["faces"]: for each examined frame {"frame", "boxes"}, boxes
    as [left, top, right, bottom, score] in pixels.
    """

    name: ClassVar[str] = "faces"
    version: ClassVar[str] = "blazeface-full-range-sparse-1"
    signals: ClassVar[Mapping[str, Signal]] = {
        "faces": Signal("count", "the most faces seen at once", "int"),
        "face_coverage": Signal("0..1", "share of the frames looked at in which a face is seen"),
        "face_area": Signal("0..1", "share of the frame under the largest face: median over frames with faces, or 0"),
    }
    weights: ClassVar[tuple[Weight, ...]] = (
        Weight(
            id="mediapipe-face-detection-full-range-sparse",
            source="pypi:mediapipe==0.10.21!mediapipe/modules/face_detection/face_detection_full_range_sparse.tflite",
            sha256="2c3728e6da56f21e21a320433396fb06d40d9088f2247c05e5635a688d45dfe1",
            licence="Apache-2.0",
        ),
    )

    def __init__(self) -> None:
        """Load the network; raises `weights.MissingWeights` if it is absent or damaged."""
        self._network = Network(weights.path(self.weights[0]))
        rows, columns = np.mgrid[:_CELLS, :_CELLS].reshape(2, -1)
        self._anchors: Floats = ((np.stack([columns, rows], axis=1) + 0.5) / _CELLS).astype(np.float32)

    def __call__(self, frames: Frames, fps: float) -> Annotation:
        """Find the faces in one clip: `frames` uint8 [T, H, W, 3] RGB; `fps` is not used."""
        height, width = frames.shape[1:3]
        detections = [(number, self._find_faces(frames[number])) for number in range(0, len(frames), _STEP)]
        largest = [
            max((right - left) * (bottom - top) for left, top, right, bottom, _ in boxes)
            for _, boxes in detections
            if boxes
        ]
        return Annotation(
            signals={
                "faces": max(len(boxes) for _, boxes in detections),
                "face_coverage": len(largest) / len(detections),
                "face_area": float(np.median(largest)) / (height * width) if largest else 0.0,
            },
            data={"faces": [{"frame": number, "boxes": boxes} for number, boxes in detections]},
        )

    def _find_faces(self, frame: NDArray[np.uint8]) -> list[list[float]]:
        """[left, top, right, bottom, score] of each face in uint8 [H, W, 3] RGB, surest first."""
        view = SquareView(frame, _SIDE)
        raw, logits = self._network(view.image, 0, 1)
        scores = sigmoid(logits[:, 0])
        detected = scores >= _SURE
        # Sixteen numbers: a box's centre, relative to the anchor, and size; then six points that are not used.
        values = raw[detected, :4].reshape(-1, 2, 2) / np.float32(_SIDE)
        centres, half_sizes = values[:, 0] + self._anchors[detected], values[:, 1] / np.float32(2)
        corners: Floats = np.stack([centres - half_sizes, centres + half_sizes], axis=1)
        limits = np.array(frame.shape[1::-1], np.float32)
        return [
            [*np.clip(view.to_frame(ends), 0, limits).astype(float).ravel().round(1).tolist(), round(score, 3)]
            for score, ends in weighted_nms(corners.reshape(-1, 4), corners, scores[detected])
        ]
