"""Faults of pictures: blur, noise, light, bars and words, each a pure function that changes nothing at strength 0."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from annotators.base import Frames

# Lengths are given for pictures of so many lines.
_LINES = 480
_MARKS = ("SAMPLESTOCK", "@filmarchive", "PREVIEW ONLY", "stockvideo.net")
_SUBTITLES = (
    ("Where did you put the keys?", "I left them on the table."),
    ("We should have stayed at home.", "It was your idea to come here."),
    ("Nobody has seen him since Monday.", "Then we have to look for him."),
)
# How much of its height a letter's capital takes, nearly.
_CAPITAL = 0.72


def blurred(frames: Frames, sigma: float, rng: Generator) -> Frames:
    """Out of focus by a Gaussian of `sigma` pixels at 480 lines."""
    spread = sigma * min(frames.shape[1:3]) / _LINES
    return np.stack([cv2.GaussianBlur(frame, (0, 0), spread) for frame in frames])


def enlarged(frames: Frames, factor: float, rng: Generator) -> Frames:
    """As from a source with 1 + `factor` times fewer lines."""
    height, width = frames.shape[1:3]
    small = (max(1, round(width / (1 + factor))), max(1, round(height / (1 + factor))))
    coarse = [cv2.resize(frame, small, interpolation=cv2.INTER_AREA) for frame in frames]
    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_CUBIC) for frame in coarse])


def noisy(frames: Frames, sigma: float, rng: Generator) -> Frames:
    """Grain of `sigma` levels in luma, new in every frame."""
    noise = (rng.standard_normal(frames.shape[:3], np.float32) * sigma)[..., None]
    return _levels(frames + noise)


def darkened(frames: Frames, share: float, rng: Generator) -> Frames:
    """Levels lowered by `share` of themselves."""
    return _levels(frames * np.float32(1 - share))


def overexposed(frames: Frames, gain: float, rng: Generator) -> Frames:
    """Levels 1 + `gain` times as high, and cut off at white."""
    return _levels(frames * np.float32(1 + gain))


def letterboxed(frames: Frames, share: float, rng: Generator) -> Frames:
    """Black bars above and below that take `share` of the frame together."""
    boxed = frames.copy()
    bar = round(frames.shape[1] * share / 2)
    if bar:
        boxed[:, :bar] = boxed[:, -bar:] = 0
    return boxed


def pillarboxed(frames: Frames, share: float, rng: Generator) -> Frames:
    """Black bars left and right that take `share` of the frame together."""
    return letterboxed(frames.swapaxes(1, 2), share, rng).swapaxes(1, 2)


def cropped(frames: Frames, share: float) -> Frames:
    """The middle, without `share` of the height and the width."""
    height, width = frames.shape[1:3]
    top, left = round(height * share / 2), round(width * share / 2)
    return frames[:, top : height - top, left : width - left]


def watermarked(frames: Frames, size: float, opacity: float, rng: Generator) -> Frames:
    """White words in a corner or the middle, their capitals `size` of the frame's height, seen by `opacity`."""
    height, width = frames.shape[1:3]
    mask = _words(str(rng.choice(_MARKS)), size * height)
    place = rng.integers(5)
    margin = round(0.04 * height)
    left, right = margin, width - mask.shape[1] - margin
    top, bottom = margin, height - mask.shape[0] - margin
    at = [(left, top), (right, top), (left, bottom), (right, bottom), ((left + right) // 2, (top + bottom) // 2)][place]
    return _laid(frames, mask * opacity, at, 255)


def subtitled(frames: Frames, size: float, rng: Generator) -> Frames:
    """Two lines, one after the other, white with a dark rim, their capitals `size` of the frame's height."""
    if not size:
        return frames
    height, width = frames.shape[1:3]
    laid, middle = [], len(frames) // 2
    for words, part in zip(_SUBTITLES[rng.integers(len(_SUBTITLES))], (frames[:middle], frames[middle:]), strict=True):
        mask = _words(words, size * height)
        at = ((width - mask.shape[1]) // 2, height - mask.shape[0] - round(0.06 * height))
        rim = cv2.dilate(mask, np.ones((3, 3), np.uint8), iterations=max(1, round(0.06 * mask.shape[0])))
        laid.append(_laid(_laid(part, rim, at, 16), mask, at, 240))
    return np.concatenate(laid)


def _levels(values: NDArray[np.float32]) -> Frames:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _words(words: str, capital: float) -> NDArray[np.float32]:
    """Words as a mask, float32 [h, w] from 0 to 1, with a margin."""
    font = ImageFont.load_default(max(1.0, capital / _CAPITAL))
    left, top, right, bottom = font.getbbox(words)
    margin = max(2, round(capital / 4))
    image = Image.new("L", (round(right - left) + 2 * margin, round(bottom - top) + 2 * margin))
    ImageDraw.Draw(image).text((margin - left, margin - top), words, fill=255, font=font)
    return np.asarray(image, np.float32) / np.float32(255)


def _laid(frames: Frames, mask: NDArray[np.float32], at: tuple[int, int], level: int) -> Frames:
    """A mask over frames from `at` (x, y) on, as far as the frame goes."""
    height, width = frames.shape[1:3]
    left, top = max(0, at[0]), max(0, at[1])
    part = mask[top - at[1] :, left - at[0] :][: height - top, : width - left]
    rows, columns = slice(top, top + part.shape[0]), slice(left, left + part.shape[1])
    laid = frames.copy()
    cover = part[..., None]
    laid[:, rows, columns] = _levels(laid[:, rows, columns] * (1 - cover) + level * cover)
    return laid
