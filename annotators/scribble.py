"""Draws every clip as lines, so that a model can learn to be steered with a few strokes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from annotators.base import Annotation, Annotator, Frames, Signal
from annotators.opencv import cv2

# The constants of ControlNet's preprocessor `scribble_xdog` (controlnet_aux, ScribbleXDog_Detector). It makes
# the short side of every picture 512 pixels; here the coarse blur is scaled instead, so that lines are as
# thick.
_FINE_SIGMA = 0.5
_COARSE_SIGMA = 5 / 512
_THRESHOLD = 16
# The coarse blur is made at half the size: it has no detail that this could lose, and is four times cheaper.
_SHRINK = 2


class Scribble(Annotator):
    """Draws white lines on black (track `scribble`) where a clip's picture is darker than what surrounds it.

    The difference of Gaussians of XDoG (Winnemoeller, Kyprianidis, Olsen: "XDoG: An eXtended
    difference-of-Gaussians compendium", 2012), cut at a fixed threshold: a pixel is part of a line if all
    three channels are more than 16 (of 255) darker than the surroundings. No line depends on another frame or
    on a statistic of its own frame, so that what stands still is drawn still.
    """

    name: ClassVar[str] = "scribble"
    version: ClassVar[str] = "xdog-1"
    tracks: ClassVar[tuple[str, ...]] = ("scribble",)
    signals: ClassVar[Mapping[str, Signal]] = {
        "scribble_density": Signal("0..1", "Share of the pixels of the clip that are part of a line.")
    }

    def __call__(self, frames: Frames, fps: float) -> Annotation:
        """Draw one clip: `frames` uint8 [T, H, W, 3] RGB; `fps` is not used."""
        drawings = np.empty_like(frames)
        white = 0
        for frame, drawing in zip(frames, drawings, strict=True):
            lines = _draw_lines(frame)
            white += cv2.countNonZero(lines)
            cv2.merge((lines, lines, lines), drawing)
        return Annotation(
            tracks={"scribble": drawings},
            signals={"scribble_density": white / (frames.size // 3)},
        )


def _draw_lines(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The lines of one frame (uint8 [H, W, 3]): uint8 [H, W], 255 on a line, 0 elsewhere."""
    height, width = frame.shape[:2]
    small = cv2.resize(frame, (max(width // _SHRINK, 1), max(height // _SHRINK, 1)), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), _COARSE_SIGMA * min(height, width) / _SHRINK)
    coarse = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    # Saturating: where the picture is brighter than its surroundings the difference is 0.
    darker = cv2.subtract(coarse, cv2.GaussianBlur(frame, (0, 0), _FINE_SIGMA))
    red, green, blue = cv2.split(darker)
    smallest = cv2.min(cv2.min(red, green), blue)
    lines: NDArray[np.uint8] = cv2.threshold(smallest, _THRESHOLD, 255, cv2.THRESH_BINARY)[1]
    return lines
