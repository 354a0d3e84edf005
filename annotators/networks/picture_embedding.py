"""One vector for what a clip shows, which its copies share: near duplicates are found by the cosine of two."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from annotators import weights
from annotators.base import Frames, Weight, spread
from annotators.networks import efficientnet
from annotators.networks.efficientnet import EfficientNet, Floats, middle, square

SIZE = efficientnet.SIZE
"""Length of the vector."""

# Frames of a clip that are looked at.
_LOOKS = 4
# Side of what the network is shown. Small pictures hide what codecs do: at 224, for which it was trained, a re-encoded
# copy is as near as at 128, but different clips come up to 0.82 instead of 0.73, and a heavily compressed one falls
# from 0.86 to 0.75.
_SIDE = 128


class Likeness:
    """The mean of what EfficientNet-Lite0 sees in four frames: whole and in their middle, as they are and mirrored.

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
        looks = frames[spread(len(frames), _LOOKS)]
        squares = np.stack([square(view, _SIDE) for look in looks for view in (look, middle(look))])
        found = self._network.features(np.concatenate([squares, squares[:, :, ::-1]]))
        mean = (found / np.linalg.norm(found, axis=1, keepdims=True)).mean(axis=0)
        unit: Floats = mean / np.linalg.norm(mean)
        return unit
