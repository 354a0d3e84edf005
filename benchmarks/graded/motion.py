"""Faults in time: what a camera or an editor does. Each is a pure function, and changes nothing at strength 0."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from annotators.base import Frames

Floats = NDArray[np.float64]

# A pan is seen through a window of this share of the picture, which goes there and back.
_WINDOW = 0.6
# A flash lasts this long; two of them, at these shares of the clip.
_FLASH_S, _FLASHES = 0.125, (0.3, 0.7)


def shaken(frames: Frames, share: float, fps: float, rng: Generator) -> Frames:
    """The camera jumps from frame to frame by `share` of the diagonal, root-mean-square."""
    height, width = frames.shape[1:3]
    # The step between two independent places is the square root of 2 times as long as one place is far from the middle,
    # and so is a length of two coordinates.
    places = rng.standard_normal((len(frames), 2)) * share * np.hypot(height, width) / 2
    return _seen(frames, 1 + 2 * np.abs(places).max() / min(height, width), places)


def zoomed(frames: Frames, rate: float, fps: float, rng: Generator) -> Frames:
    """The camera zooms in by `rate` of the picture's size a second."""
    return _seen(frames, (1 + rate) ** (np.arange(len(frames)) / fps), np.zeros((len(frames), 2)))


def panned(frames: Frames, rate: float, fps: float, rng: Generator) -> Frames:
    """The camera pans by `rate` of the diagonal a second, in one direction until the picture ends, then back."""
    if not rate:
        return frames
    height, width = frames.shape[1:3]
    room = (1 - _WINDOW) * width / _WINDOW
    way = np.arange(len(frames)) / fps * rate * np.hypot(height, width)
    there_and_back = room - np.abs(way % (2 * room) - room) - room / 2
    return _seen(frames, 1 / _WINDOW, np.stack([there_and_back, np.zeros(len(frames))], axis=1))


def flashed(frames: Frames, levels: float, fps: float, rng: Generator) -> Frames:
    """Two flashes, an eighth of a second each, that lift all levels by `levels`."""
    lit = frames.copy()
    length = max(1, round(_FLASH_S * fps))
    for share in _FLASHES:
        begin = round(share * len(frames))
        part = lit[begin : begin + length]
        part[:] = np.clip(part + np.float32(levels), 0, 255).astype(np.uint8)
    return lit


def faded_in(frames: Frames, seconds: float, fps: float, rng: Generator) -> Frames:
    """From black, within `seconds`."""
    if not seconds:
        return frames
    light = np.clip(np.arange(len(frames)) / fps / seconds, 0, 1).astype(np.float32)
    return _lit(frames, light)


def dimmed(frames: Frames, share: float) -> Frames:
    """The light jumps down by `share` in the middle, and stays so: a lamp, a cloud, an automatic exposure."""
    middle = len(frames) // 2
    light = np.where(np.arange(len(frames)) < middle, 1.0, 1 - share).astype(np.float32)
    return _lit(frames, light)


def punched_in(frames: Frames, share: float, fps: float, rng: Generator) -> Frames:
    """A cut in the middle to the same scene, seen 1 + `share` times as large."""
    middle = len(frames) // 2
    scale = np.where(np.arange(len(frames)) < middle, 1.0, 1 + share)
    return _seen(frames, scale, np.zeros((len(frames), 2)))


def cut_to(frames: Frames, other: Frames) -> Frames:
    """A cut in the middle to another scene."""
    middle = len(frames) // 2
    return np.concatenate([frames[:middle], other[: len(frames) - middle]])


def dissolved(frames: Frames, other: Frames, seconds: float, fps: float) -> Frames:
    """Another scene comes out of the first one in the middle, within `seconds`."""
    if not seconds:
        return frames
    place = (np.arange(len(frames)) - len(frames) // 2) / fps / seconds + 0.5
    share = np.clip(place, 0, 1).astype(np.float32)[:, None, None, None]
    return np.rint(frames * (1 - share) + other[: len(frames)] * share).astype(np.uint8)


def _lit(frames: Frames, light: NDArray[np.float32]) -> Frames:
    """Each frame's levels times its own light."""
    lit: Frames = np.rint(frames * light[:, None, None, None]).astype(np.uint8)
    return lit


def _seen(frames: Frames, scale: Floats | float, shift: Floats) -> Frames:
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
