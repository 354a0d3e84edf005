"""Measures whether a clip moves at all: finds held pictures and slideshows, whatever their frame rate says."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from annotators.base import Filter, Frames, Signal, Value
from annotators.opencv import cv2

# Frames are compared when shrunk by this factor: coding noise averages out, and motion of a pixel still shows.
_SHRINK = 4
# Levels of 255 below which a pixel is the same, and the share of pixels that must be.
_LEVEL, _SHARE = 2.0, 0.999
# Pictures that are held for as long as this, one after the other, make a slideshow.
_HELD_S = 0.5


class Stillness(Filter):
    """Counts frames that repeat the one before, and pictures that are held."""

    name = "stillness"
    version = "1"
    signals: ClassVar[Mapping[str, Signal]] = {
        "frozen": Signal("0..1", "share of frames that repeat the one before"),
        "slides": Signal("count", "pictures that are held for half a second or more", "int"),
    }

    def __call__(self, frames: Frames, fps: float) -> dict[str, Value]:
        if len(frames) < 2:
            return {"frozen": None, "slides": None}
        same = np.array([_is_same(before, after) for before, after in _make_pairs(frames)])
        edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(int)))
        lengths = edges[1::2] - edges[::2]
        return {"frozen": float(same.mean()), "slides": int((lengths + 1 >= _HELD_S * fps).sum())}


def _make_pairs(frames: Frames) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    height, width = frames.shape[1:3]
    size = (max(1, width // _SHRINK), max(1, height // _SHRINK))
    small = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames]
    return list(pairwise(small))


def _is_same(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> bool:
    return bool((cv2.absdiff(before, after).max(axis=2) <= _LEVEL).mean() >= _SHARE)
