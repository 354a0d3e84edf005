"""Embeds a clip in one vector, which its copies share: near duplicates are found by the cosine of two vectors."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from annotators import weights
from annotators.base import Frames, Weight, spread
from annotators.networks import efficientnet
from annotators.networks.efficientnet import EfficientNet, Floats, crop_middle, resize_square

SIZE = efficientnet.SIZE
"""Length of the vector."""

# Frames of a clip that the network sees.
_FRAMES = 4
# The side of the network's input. Small pictures hide codec damage: at 224, for which it was trained, a re-encoded
# copy is as near as at 128, but different clips come up to 0.82 instead of 0.73, and a heavily compressed one falls
# from 0.86 to 0.75.
_SIDE = 128


class ClipEmbedding:
    """The mean of EfficientNet-Lite0's features of four frames: whole and in their middle, as they are and mirrored.

    Each view alone tells a copy from another clip; together they are nearer for a cropped copy (the middle) and for one
    with bars or a mirrored one, and no further for different clips.
    """

    version: ClassVar[str] = "efficientnet-lite0-likeness-1"
    weights: ClassVar[tuple[Weight, ...]] = (efficientnet.WEIGHT,)

    def __init__(self) -> None:
        """Load the network; raises `weights.MissingWeights` if its file is absent or damaged."""
        self._network = EfficientNet(weights.path(efficientnet.WEIGHT))

    def __call__(self, frames: Frames) -> Floats:
        """The unit vector, float32 [SIZE], of a clip: `frames` uint8 [T, H, W, 3] RGB."""
        samples = frames[spread(len(frames), _FRAMES)]
        squares = np.stack([resize_square(view, _SIDE) for frame in samples for view in (frame, crop_middle(frame))])
        features = self._network.features(np.concatenate([squares, squares[:, :, ::-1]]))
        mean = (features / np.linalg.norm(features, axis=1, keepdims=True)).mean(axis=0)
        unit: Floats = mean / np.linalg.norm(mean)
        return unit
