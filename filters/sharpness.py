"""How sharp a clip is: finds defocus and upscaled pictures, which a trainer would learn to imitate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import cv2
import numpy as np

from annotators.base import Frames, Signal, Value
from filters.exposure import grey


class Sharpness:
    """Share of detail that a slight blur destroys.

    The plain variance of the Laplacian (Pech-Pacheco et al., ICPR 2000) grows with contrast, so a sharp but hazy
    picture scores below a blurred but contrasty one. Dividing the Laplacian's energy by the picture's own removes
    contrast and leaves the question that matters: is there fine detail, relative to coarse?
    """

    name = "sharpness"
    version = "1"
    signals: ClassVar[Mapping[str, Signal]] = {
        "sharpness": Signal("0..100", "100 * std of luma's Laplacian / std of luma, median over frames")
    }

    def __call__(self, frames: Frames, fps: float) -> dict[str, Value]:
        pictures = grey(frames)
        spreads = [(float(np.std(cv2.Laplacian(picture, cv2.CV_32F))), float(np.std(picture))) for picture in pictures]
        ratios = [fine / coarse for fine, coarse in spreads if coarse > 1]
        # A uniform picture has no detail to be sharp: the signal does not apply.
        return {"sharpness": 100 * float(np.median(ratios)) if ratios else None}
