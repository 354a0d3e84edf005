"""An annotator and a filter of one's own: what changes between frames, and how much colour there is."""

from __future__ import annotations

import numpy as np

from vdot_data import Annotation, Annotator, Filter, Signal


class FrameChange(Annotator):
    """Draws how much each pixel differs from the frame before (track `change`); the first frame is black."""

    name = "frame_change"
    version = "1"  # another one makes the layer again: the same frames may give other values
    tracks = ("change",)
    signals = {"change_mean": Signal("0..255", "mean difference of a pixel from the frame before")}

    def __call__(self, frames: np.ndarray, fps: float) -> Annotation:
        """`frames`: uint8 [T, H, W, 3] RGB. A track has the same shape."""
        track = np.zeros_like(frames)
        for index in range(1, len(frames)):
            difference = np.abs(frames[index].astype(np.int16) - frames[index - 1])
            track[index] = difference.max(axis=-1, keepdims=True)
        # Raise where a measurement fails: the clip then has a failure with a code, and no false value.
        return Annotation(tracks={"change": track}, signals={"change_mean": float(track[1:].mean())})


class Saturation(Filter):
    """Measures saturation as in HSV. Filters run before anything is encoded, so that rules can reject early."""

    name = "saturation"
    version = "1"
    signals = {"saturation": Signal("0..1", "mean saturation of every eighth frame (HSV)")}

    def __call__(self, frames: np.ndarray, fps: float) -> dict[str, float]:
        """`frames`: uint8 [T, H, W, 3] RGB."""
        pixels = frames[::8].astype(np.float32)
        brightest = pixels.max(axis=-1)
        return {"saturation": float(((brightest - pixels.min(axis=-1)) / np.maximum(brightest, 1)).mean())}
