"""Makes faults of pictures: blur, noise, light, bars and words, each a pure function without effect at strength 0."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from annotators.base import Frames

# Lengths refer to pictures of this many lines.
_LINES = 480
_MARKS = ("SAMPLESTOCK", "@filmarchive", "PREVIEW ONLY", "stockvideo.net")
_SUBTITLES = (
    ("Where did you put the keys?", "I left them on the table."),
    ("We should have stayed at home.", "It was your idea to come here."),
    ("Nobody has seen him since Monday.", "Then we have to look for him."),
)
# The approximate height of a capital letter as a share of the font's size.
_CAPITAL = 0.72


def blur(frames: Frames, sigma: float, rng: Generator) -> Frames:
    """Out of focus by a Gaussian of `sigma` pixels at 480 lines."""
    spread = sigma * min(frames.shape[1:3]) / _LINES
    return np.stack([cv2.GaussianBlur(frame, (0, 0), spread) for frame in frames])


def enlarge(frames: Frames, factor: float, rng: Generator) -> Frames:
    """Enlarged from a source with 1 + `factor` times fewer lines."""
    height, width = frames.shape[1:3]
    small = (max(1, round(width / (1 + factor))), max(1, round(height / (1 + factor))))
    coarse = [cv2.resize(frame, small, interpolation=cv2.INTER_AREA) for frame in frames]
    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_CUBIC) for frame in coarse])


def add_noise(frames: Frames, sigma: float, rng: Generator) -> Frames:
    """Grain of `sigma` levels in luma, new in every frame."""
    noise = (rng.standard_normal(frames.shape[:3], np.float32) * sigma)[..., None]
    return _to_levels(frames + noise)


def darken(frames: Frames, share: float, rng: Generator) -> Frames:
    """Levels lowered by `share` of themselves."""
    return _to_levels(frames * np.float32(1 - share))


def overexpose(frames: Frames, gain: float, rng: Generator) -> Frames:
    """Levels 1 + `gain` times as high, clipped at white."""
    return _to_levels(frames * np.float32(1 + gain))


def letterbox(frames: Frames, share: float, rng: Generator) -> Frames:
    """Black bars above and below that take `share` of the frame together."""
    boxed = frames.copy()
    bar = round(frames.shape[1] * share / 2)
    if bar:
        boxed[:, :bar] = boxed[:, -bar:] = 0
    return boxed


def pillarbox(frames: Frames, share: float, rng: Generator) -> Frames:
    """Black bars left and right that take `share` of the frame together."""
    return letterbox(frames.swapaxes(1, 2), share, rng).swapaxes(1, 2)


def crop(frames: Frames, share: float) -> Frames:
    """The middle, without `share` of the height and the width."""
    height, width = frames.shape[1:3]
    top, left = round(height * share / 2), round(width * share / 2)
    return frames[:, top : height - top, left : width - left]


def add_watermark(frames: Frames, size: float, opacity: float, rng: Generator) -> Frames:
    """White words in a corner or the middle, with capitals of `size` times the frame's height, and with `opacity`."""
    height, width = frames.shape[1:3]
    mask = _draw_words(str(rng.choice(_MARKS)), size * height)
    corner = rng.integers(5)
    margin = round(0.04 * height)
    left, right = margin, width - mask.shape[1] - margin
    top, bottom = margin, height - mask.shape[0] - margin
    middle = (left + right) // 2, (top + bottom) // 2
    position = [(left, top), (right, top), (left, bottom), (right, bottom), middle][corner]
    return _overlay(frames, mask * opacity, position, 255)


def add_subtitles(frames: Frames, size: float, rng: Generator) -> Frames:
    """Two lines, one after the other, white with a dark rim, with capitals of `size` times the frame's height."""
    if not size:
        return frames
    height, width = frames.shape[1:3]
    parts, middle = [], len(frames) // 2
    for words, part in zip(_SUBTITLES[rng.integers(len(_SUBTITLES))], (frames[:middle], frames[middle:]), strict=True):
        mask = _draw_words(words, size * height)
        position = ((width - mask.shape[1]) // 2, height - mask.shape[0] - round(0.06 * height))
        rim = cv2.dilate(mask, np.ones((3, 3), np.uint8), iterations=max(1, round(0.06 * mask.shape[0])))
        parts.append(_overlay(_overlay(part, rim, position, 16), mask, position, 240))
    return np.concatenate(parts)


def _to_levels(values: NDArray[np.float32]) -> Frames:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _draw_words(words: str, capital: float) -> NDArray[np.float32]:
    """Words as a mask, float32 [h, w] from 0 to 1, with a margin."""
    font = ImageFont.load_default(max(1.0, capital / _CAPITAL))
    left, top, right, bottom = font.getbbox(words)
    margin = max(2, round(capital / 4))
    image = Image.new("L", (round(right - left) + 2 * margin, round(bottom - top) + 2 * margin))
    ImageDraw.Draw(image).text((margin - left, margin - top), words, fill=255, font=font)
    return np.asarray(image, np.float32) / np.float32(255)


def _overlay(frames: Frames, mask: NDArray[np.float32], position: tuple[int, int], level: int) -> Frames:
    """Blend `level` into frames by a mask placed at `position` (x, y) and cropped to the frame."""
    height, width = frames.shape[1:3]
    left, top = max(0, position[0]), max(0, position[1])
    part = mask[top - position[1] :, left - position[0] :][: height - top, : width - left]
    rows, columns = slice(top, top + part.shape[0]), slice(left, left + part.shape[1])
    result = frames.copy()
    cover = part[..., None]
    result[:, rows, columns] = _to_levels(result[:, rows, columns] * (1 - cover) + level * cover)
    return result
