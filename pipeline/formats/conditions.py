"""Conditions that a task shows a model of a clip: pixels, a mask of what to generate, and references; in VACE's terms.

Mask true: to generate; false: kept as it is. Gray stands for what is missing. A composite is the sum of its parts: a
control track fills the masked pixels. [VACE: UserGuide.md, vace/annotators; Apache-2.0, read for the rules]

Only numpy, because trainers import it. All randomness comes from a generator that the caller passes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Mask = NDArray[np.bool_]

# What is missing: the middle of 0 to 255, as VACE's user guide has it.
GRAY = 127
REFERENCE, TEXT = "reference", "text"
# ITU-R BT.601 in OpenCV's whole numbers [opencv: modules/imgproc/src/color.simd_helpers.hpp], so that every machine
# rounds the same way.
_BITS = 15
_LUMA, _HALF = (np.uint32(9798), np.uint32(19235), np.uint32(3735)), np.uint32(1 << _BITS - 1)
_REFERENCE_NAME = re.compile(r"ref\.(\d+)\.png")
# A hole covers at most this share of a frame.
_MAX_HOLE = 0.75
# The Wan autoencoder takes frames in groups of 4 after the first, and pixels in squares of 8.
_GROUP, _SQUARE = 4, 8


@dataclass(frozen=True, slots=True)
class Condition:
    """What a model sees of a clip. `video` uint8 [T, H, W, 3] RGB, None: nothing; `mask` bool [T, H, W], None: generate
    all; `references` uint8 [H, W, 3] RGB each, on white."""

    video: Frames | None
    mask: Mask | None
    references: tuple[Frames, ...]


def make_generator(seed: int, epoch: int, clip_id: str, task: str) -> np.random.Generator:
    """The generator for one clip, task and epoch: the same on every machine and in every run."""
    key = hashlib.sha256(f"{seed} {epoch} {clip_id} {task}".encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key)))


def build_condition(
    parts: Sequence[str],
    frames: Frames,
    tracks: Mapping[str, Callable[[], Frames]],
    references: Sequence[Frames],
    generator: np.random.Generator,
) -> Condition:
    """The condition of one clip for a task of these `parts` (one for a single task).

    `frames` uint8 [T, H, W, 3] RGB; `tracks` gives each track, of the same shape, when called. A part is `reference`,
    `text`, one of `MASKS`, `gray`, or else the name of a track. Raises `ValueError` for a track or
    reference that the clip lacks, and for two control tracks.
    """
    control: Frames | None = None
    mask: Mask | None = None
    for part in parts:
        if part in MASKS:
            subject = tracks["mask"]()[..., 0] > GRAY if "mask" in tracks else None
            drawn_mask = MASKS[part](frames.shape[:3], subject, generator)
            mask = drawn_mask if mask is None else mask | drawn_mask
        elif part == REFERENCE:
            if not references:
                raise ValueError("it has no reference picture")
        elif part != TEXT:
            if control is not None:
                raise ValueError(f"{part} is a second control track; a condition takes only one")
            if part != "gray" and part not in tracks:
                raise ValueError(f"it has no track {part!r} (there are: {', '.join(tracks) or 'none'})")
            control = to_gray(frames) if part == "gray" else tracks[part]()
    video = control
    if mask is not None:
        # In the memory layout of the frames: those of a trainer are planes.
        video = frames.copy(order="K")
        np.copyto(video, np.uint8(GRAY) if control is None else control, where=mask[..., None])
    return Condition(video, mask, tuple(references) if REFERENCE in parts else ())


def to_gray(frames: Frames) -> Frames:
    """Frames without colour: uint8 [T, H, W, 3], three times the luma as OpenCV (and VACE) computes it; a read-only
    view."""
    levels = np.empty(frames.shape[:3], np.uint8)
    for level, frame in zip(levels, frames, strict=True):
        red, green, blue = (frame[..., channel].astype(np.uint32) for channel in range(3))
        level[...] = (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue + _HALF) >> _BITS
    return np.broadcast_to(levels[..., None], frames.shape)


def read_caption(members: Mapping[str, bytes | memoryview]) -> str:
    """The caption among a clip's members, "" if there is none; if several layers wrote one, that of the newest, which
    comes last."""
    captions = [name for name in members if name == "txt" or name.endswith(".txt")]
    return bytes(members[captions[-1]]).decode() if captions else ""


def reference_names(members: Iterable[str]) -> list[str]:
    """The members that are reference pictures, in their order."""
    matches = (_REFERENCE_NAME.fullmatch(name) for name in members)
    return [match[0] for match in sorted(filter(None, matches), key=lambda match: int(match[1]))]


def track_names(members: Iterable[str]) -> dict[str, str]:
    """Each track of a clip -> the member that holds it."""
    return {name.removesuffix(".mp4"): name for name in members if name.endswith(".mp4")}


def _draw_first_frame(shape: tuple[int, ...], subject: Mask | None, generator: np.random.Generator) -> Mask:
    mask = np.ones(shape, bool)
    mask[0] = False
    return mask


def _draw_extension(shape: tuple[int, ...], subject: Mask | None, generator: np.random.Generator) -> Mask:
    """The beginning or the end is kept: at most half of the clip, in whole groups of the autoencoder, which are the
    first frame and then every four."""
    mask = np.ones(shape, bool)
    largest = (shape[0] - 1) // _GROUP // 2
    length = _GROUP * int(generator.integers(min(1, largest), largest + 1))
    if generator.random() < 0.5 or not length:
        mask[: 1 + length] = False
    else:
        mask[-length:] = False
    return mask


def _draw_border(shape: tuple[int, ...], subject: Mask | None, generator: np.random.Generator) -> Mask:
    """One to four sides are masked, each a tenth to three tenths of the picture."""
    _, height, width = shape
    sides = generator.permutation(4)[: generator.integers(1, 5)]
    mask = np.zeros(shape, bool)
    for side in range(4):
        length = height if side < 2 else width
        # Pictures too small for squares (tests, thumbnails) are cut at any pixel.
        square = _SQUARE if length >= 8 * _SQUARE else 1
        thickness = max(1, round(length * generator.uniform(0.1, 0.3) / square) * square)
        if side in sides:
            mask[(slice(None), *_edge_slices(side, thickness))] = True
    return mask


def _edge_slices(side: int, thickness: int) -> tuple[slice, ...]:
    line = (slice(None, thickness), slice(-thickness, None))[side % 2]
    return (line,) if side < 2 else (slice(None), line)


def _draw_hole(shape: tuple[int, ...], subject: Mask | None, generator: np.random.Generator) -> Mask:
    """The subject, grown, or the box around it frame by frame; a box that stays in place if there is no subject, or if
    a frame would keep almost none of its pixels."""
    _, height, width = shape
    radius = round(min(height, width) * generator.uniform(0.02, 0.08))
    boxed = generator.random() < 0.5
    box_height, box_width = (round(length * generator.uniform(0.25, 0.6)) for length in (height, width))
    top, left = generator.integers(0, height - box_height + 1), generator.integers(0, width - box_width + 1)
    if subject is not None and subject.mean() >= 0.01:
        for shape_mask in (np.stack([_fill_box(frame) for frame in subject]) if boxed else subject, subject):
            grown = _grow(shape_mask, radius)
            if grown.mean((1, 2)).max() <= _MAX_HOLE:
                return grown
    mask = np.zeros(shape, bool)
    mask[:, top : top + box_height, left : left + box_width] = True
    return mask


def _fill_box(mask: Mask) -> Mask:
    """The smallest box around the true pixels of [H, W]."""
    return _fill_span(mask, 1)[:, None] & _fill_span(mask, 0)[None, :]


def _fill_span(mask: Mask, axis: int) -> Mask:
    """The lines across `axis` from the first that has a true pixel to the last."""
    line = np.asarray(mask.any(axis))
    span: Mask = np.logical_or.accumulate(line) & np.logical_or.accumulate(line[::-1])[::-1]
    return span


def _grow(mask: Mask, radius: int) -> Mask:
    """[T, H, W] with every true pixel grown to a square of side 2 radius + 1; by doubling, in few passes."""
    for axis in (1, 2):
        grown_by = 0
        while grown_by < radius:
            step = min(grown_by + 1, radius - grown_by)
            grown = mask.copy()
            _slice_axis(grown, axis, slice(None, -step))[...] |= _slice_axis(mask, axis, slice(step, None))
            _slice_axis(grown, axis, slice(step, None))[...] |= _slice_axis(mask, axis, slice(None, -step))
            mask, grown_by = grown, grown_by + step
    return mask


def _slice_axis(mask: Mask, axis: int, section: slice) -> Mask:
    return mask[(slice(None),) * axis + (section,)]


MASKS: dict[str, Callable[[tuple[int, ...], Mask | None, np.random.Generator], Mask]] = {
    "inpaint": _draw_hole,
    "outpaint": _draw_border,
    "firstframe": _draw_first_frame,
    "extension": _draw_extension,
}
"""Tasks that keep part of the clip's own pixels: (shape [T, H, W], subject or None, generator) -> mask."""
