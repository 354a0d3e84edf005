"""What a task shows a model of a clip: pixels, the mask of what is to be made, and references; in VACE's terms.

Mask true: to be made; false: kept as it is. Gray stands for what is missing. A composite is the sum of its parts: a
control track fills what a mask leaves open. [VACE: UserGuide.md, vace/annotators; Apache-2.0, read for the rules]

Numpy alone, because trainers import it. What is drawn follows from a generator that the caller gives.
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
# ITU-R BT.601 in OpenCV's whole numbers [opencv: modules/imgproc/src/color.simd_helpers.hpp], so that no machine rounds
# another way.
_BITS = 15
_LUMA, _HALF = (np.uint32(9798), np.uint32(19235), np.uint32(3735)), np.uint32(1 << _BITS - 1)
_REFERENCE_NAME = re.compile(r"ref\.(\d+)\.png")
# A hole leaves some of each frame.
_MOST = 0.75
# The Wan autoencoder takes frames in groups of 4 after the first, and pixels in squares of 8.
_GROUP, _SQUARE = 4, 8


@dataclass(frozen=True, slots=True)
class Condition:
    """What is given of a clip. `video` uint8 [T, H, W, 3] RGB, None: nothing; `mask` bool [T, H, W], None: all is to be
    made; `references` uint8 [H, W, 3] RGB each, on white."""

    video: Frames | None
    mask: Mask | None
    references: tuple[Frames, ...]


def generator(seed: int, epoch: int, clip_id: str, task: str) -> np.random.Generator:
    """The generator of one clip's draw for one task in one epoch: the same wherever and whenever it is asked for."""
    key = hashlib.sha256(f"{seed} {epoch} {clip_id} {task}".encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key)))


def condition(
    parts: Sequence[str],
    frames: Frames,
    tracks: Mapping[str, Callable[[], Frames]],
    references: Sequence[Frames],
    draw: np.random.Generator,
) -> Condition:
    """The condition of a task that is made of `parts` (one for a single task) for one clip.

    `frames` uint8 [T, H, W, 3] RGB; `tracks` gives each track, of the same shape, when called. A part is `reference`,
    `text`, one of `MASKS`, `gray`, or else the name of a track. Raises `ValueError` for a
    track or reference that the clip lacks, and for two control tracks.
    """
    control: Frames | None = None
    mask: Mask | None = None
    for part in parts:
        if part in MASKS:
            subject = tracks["mask"]()[..., 0] > GRAY if "mask" in tracks else None
            drawn = MASKS[part](frames.shape[:3], subject, draw)
            mask = drawn if mask is None else mask | drawn
        elif part == REFERENCE:
            if not references:
                raise ValueError("it has no reference picture")
        elif part != TEXT:
            if control is not None:
                raise ValueError(f"{part} is a second control track; a condition has room for one")
            if part != "gray" and part not in tracks:
                raise ValueError(f"it has no track {part!r} (there are: {', '.join(tracks) or 'none'})")
            control = gray(frames) if part == "gray" else tracks[part]()
    video = control
    if mask is not None:
        # In the memory layout of the frames: a trainer's are planes.
        video = frames.copy(order="K")
        np.copyto(video, np.uint8(GRAY) if control is None else control, where=mask[..., None])
    return Condition(video, mask, tuple(references) if REFERENCE in parts else ())


def gray(frames: Frames) -> Frames:
    """Frames without colour: uint8 [T, H, W, 3], three times the luma as OpenCV has it (and so VACE); a read-only
    view."""
    levels = np.empty(frames.shape[:3], np.uint8)
    for level, frame in zip(levels, frames, strict=True):
        red, green, blue = (frame[..., channel].astype(np.uint32) for channel in range(3))
        level[...] = (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue + _HALF) >> _BITS
    return np.broadcast_to(levels[..., None], frames.shape)


def caption(members: Mapping[str, bytes | memoryview]) -> str:
    """The caption among a clip's members, "" if there is none; of several layers that wrote one, the newest one's,
    which comes last."""
    written = [name for name in members if name == "txt" or name.endswith(".txt")]
    return bytes(members[written[-1]]).decode() if written else ""


def reference_names(members: Iterable[str]) -> list[str]:
    """The members that are reference pictures, in their order."""
    found = (_REFERENCE_NAME.fullmatch(name) for name in members)
    return [match[0] for match in sorted(filter(None, found), key=lambda match: int(match[1]))]


def track_names(members: Iterable[str]) -> dict[str, str]:
    """Each track of a clip -> the member that holds it."""
    return {name.removesuffix(".mp4"): name for name in members if name.endswith(".mp4")}


def _first_frame(shape: tuple[int, ...], subject: Mask | None, draw: np.random.Generator) -> Mask:
    mask = np.ones(shape, bool)
    mask[0] = False
    return mask


def _extension(shape: tuple[int, ...], subject: Mask | None, draw: np.random.Generator) -> Mask:
    """The beginning or the end is given: at most half of the clip, in whole groups of the autoencoder, which are the
    first frame and then every four."""
    mask = np.ones(shape, bool)
    most = (shape[0] - 1) // _GROUP // 2
    given = _GROUP * int(draw.integers(min(1, most), most + 1))
    if draw.random() < 0.5 or not given:
        mask[: 1 + given] = False
    else:
        mask[-given:] = False
    return mask


def _border(shape: tuple[int, ...], subject: Mask | None, draw: np.random.Generator) -> Mask:
    """One to four sides are to be made, each a tenth to three tenths of the picture."""
    _, height, width = shape
    sides = draw.permutation(4)[: draw.integers(1, 5)]
    mask = np.zeros(shape, bool)
    for side in range(4):
        length = height if side < 2 else width
        # Pictures too small for squares (tests, thumbnails) are cut where the draw says.
        square = _SQUARE if length >= 8 * _SQUARE else 1
        wide = max(1, round(length * draw.uniform(0.1, 0.3) / square) * square)
        if side in sides:
            mask[(slice(None), *_edge(side, wide))] = True
    return mask


def _edge(side: int, wide: int) -> tuple[slice, ...]:
    at = (slice(None, wide), slice(-wide, None))[side % 2]
    return (at,) if side < 2 else (slice(None), at)


def _hole(shape: tuple[int, ...], subject: Mask | None, draw: np.random.Generator) -> Mask:
    """The subject, grown, or the box around it frame by frame; a box that stands still where there is no subject, or
    where a frame would be left with next to nothing of its own."""
    _, height, width = shape
    grow = round(min(height, width) * draw.uniform(0.02, 0.08))
    boxed = draw.random() < 0.5
    tall, wide = (round(length * draw.uniform(0.25, 0.6)) for length in (height, width))
    top, left = draw.integers(0, height - tall + 1), draw.integers(0, width - wide + 1)
    if subject is not None and subject.mean() >= 0.01:
        for shown in (np.stack([_box(one) for one in subject]) if boxed else subject, subject):
            grown = _grown(shown, grow)
            if grown.mean((1, 2)).max() <= _MOST:
                return grown
    mask = np.zeros(shape, bool)
    mask[:, top : top + tall, left : left + wide] = True
    return mask


def _box(mask: Mask) -> Mask:
    """The smallest box around what is true in [H, W]."""
    return _between(mask, 1)[:, None] & _between(mask, 0)[None, :]


def _between(mask: Mask, axis: int) -> Mask:
    """The lines across `axis` from the first with something true to the last."""
    line = np.asarray(mask.any(axis))
    seen: Mask = np.logical_or.accumulate(line) & np.logical_or.accumulate(line[::-1])[::-1]
    return seen


def _grown(mask: Mask, by: int) -> Mask:
    """[T, H, W] with every true pixel grown to a square of 2 by + 1; by doubling, so that it takes few passes."""
    for axis in (1, 2):
        done = 0
        while done < by:
            step = min(done + 1, by - done)
            grown = mask.copy()
            _part(grown, axis, slice(None, -step))[...] |= _part(mask, axis, slice(step, None))
            _part(grown, axis, slice(step, None))[...] |= _part(mask, axis, slice(None, -step))
            mask, done = grown, done + step
    return mask


def _part(mask: Mask, axis: int, where: slice) -> Mask:
    return mask[(slice(None),) * axis + (where,)]


MASKS: dict[str, Callable[[tuple[int, ...], Mask | None, np.random.Generator], Mask]] = {
    "inpaint": _hole,
    "outpaint": _border,
    "firstframe": _first_frame,
    "extension": _extension,
}
"""Tasks that keep part of the clip's own pixels: (shape [T, H, W], subject or None, generator) -> mask."""
