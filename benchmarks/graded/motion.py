"""Makes faults in time, by a camera or an editor: each a pure function without effect at strength 0."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from annotators.base import Frames

Floats = NDArray[np.float64]

# A pan is a window of this share of the picture that moves back and forth.
_WINDOW = 0.6
# Seconds of a flash; two of them start at these shares of the clip.
_FLASH_S, _FLASHES = 0.125, (0.3, 0.7)


def shake(frames: Frames, share: float, fps: float, rng: Generator) -> Frames:
    """The camera jumps from frame to frame by `share` of the diagonal, root-mean-square."""
    height, width = frames.shape[1:3]
    # The step between two independent positions is the square root of 2 times a position's distance from the middle,
    # and a length of two coordinates has the same factor over one coordinate.
    places = rng.standard_normal((len(frames), 2)) * share * np.hypot(height, width) / 2
    return _warp(frames, 1 + 2 * np.abs(places).max() / min(height, width), places)


def zoom(frames: Frames, rate: float, fps: float, rng: Generator) -> Frames:
    """The camera zooms in by `rate` of the picture's size a second."""
    return _warp(frames, (1 + rate) ** (np.arange(len(frames)) / fps), np.zeros((len(frames), 2)))


def pan(frames: Frames, rate: float, fps: float, rng: Generator) -> Frames:
    """The camera pans by `rate` of the diagonal a second, in one direction until the picture ends, then back."""
    if not rate:
        return frames
    height, width = frames.shape[1:3]
    margin = (1 - _WINDOW) * width / _WINDOW
    distance = np.arange(len(frames)) / fps * rate * np.hypot(height, width)
    offsets = margin - np.abs(distance % (2 * margin) - margin) - margin / 2
    return _warp(frames, 1 / _WINDOW, np.stack([offsets, np.zeros(len(frames))], axis=1))


def flash(frames: Frames, levels: float, fps: float, rng: Generator) -> Frames:
    """Two flashes, an eighth of a second each, that lift all levels by `levels`."""
    lit = frames.copy()
    length = max(1, round(_FLASH_S * fps))
    for share in _FLASHES:
        start = round(share * len(frames))
        part = lit[start : start + length]
        part[:] = np.clip(part + np.float32(levels), 0, 255).astype(np.uint8)
    return lit


def fade_in(frames: Frames, seconds: float, fps: float, rng: Generator) -> Frames:
    """From black, within `seconds`."""
    if not seconds:
        return frames
    light = np.clip(np.arange(len(frames)) / fps / seconds, 0, 1).astype(np.float32)
    return _scale_light(frames, light)


def dim(frames: Frames, share: float) -> Frames:
    """The light drops by `share` in the middle, and stays there: a lamp, a cloud, an automatic exposure."""
    middle = len(frames) // 2
    light = np.where(np.arange(len(frames)) < middle, 1.0, 1 - share).astype(np.float32)
    return _scale_light(frames, light)


def punch_in(frames: Frames, share: float, fps: float, rng: Generator) -> Frames:
    """A cut in the middle to the same scene, seen 1 + `share` times as large."""
    middle = len(frames) // 2
    scale = np.where(np.arange(len(frames)) < middle, 1.0, 1 + share)
    return _warp(frames, scale, np.zeros((len(frames), 2)))


def dissolve(frames: Frames, second: Frames, seconds: float, fps: float) -> Frames:
    """A dissolve to another scene in the middle, within `seconds`."""
    if not seconds:
        return frames
    progress = (np.arange(len(frames)) - len(frames) // 2) / fps / seconds + 0.5
    share = np.clip(progress, 0, 1).astype(np.float32)[:, None, None, None]
    return np.rint(frames * (1 - share) + second[: len(frames)] * share).astype(np.uint8)


def _scale_light(frames: Frames, light: NDArray[np.float32]) -> Frames:
    """Each frame's levels times its own light."""
    lit: Frames = np.rint(frames * light[:, None, None, None]).astype(np.uint8)
    return lit


def _warp(frames: Frames, scale: Floats | float, shift: Floats) -> Frames:
    """Each frame enlarged around its middle by `scale` and moved by `shift` pixels."""
    height, width = frames.shape[1:3]
    pictures = []
    for frame, factor, (x, y) in zip(frames, np.broadcast_to(scale, len(frames)), shift, strict=True):
        if factor == 1 and not x and not y:
            pictures.append(frame)
            continue
        matrix = np.array([[factor, 0, (1 - factor) * width / 2 + x], [0, factor, (1 - factor) * height / 2 + y]])
        pictures.append(
            cv2.warpAffine(frame, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        )
    return np.stack(pictures)
