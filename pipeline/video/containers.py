"""What containers say that PyAV does not hand on: the part of the picture that is shown, and whether there is an index.

FFmpeg's own program applies Matroska's PixelCrop and MP4's clean aperture, its libraries leave them to the caller.
[RFC 9559, section 5.1.4.1.28; ISO/IEC 14496-12, sections 8.8 and 12.1.4]
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

Crop = tuple[int, int, int, int]
"""Pixels to leave out at the left, top, right and bottom of the stored picture."""

# Headers are small: a larger element is damaged, or holds what is of no interest here.
_LARGEST = 1 << 22
# Elements that are looked at in one file, so that a damaged one cannot keep us.
_MOST_ELEMENTS = 100_000

_SEGMENT, _TRACKS, _ENTRY, _TYPE, _VIDEO = 0x18538067, 0x1654AE6B, 0xAE, 0x83, 0xE0
_LEFT, _TOP, _RIGHT, _BOTTOM = 0x54CC, 0x54BB, 0x54DD, 0x54AA
_VIDEO_TRACK = 1
# Before an entry of a sample description ends its fixed part and its boxes begin. [ISO/IEC 14496-12, section 12.1.3]
_VISUAL_ENTRY = 78


def crop(path: Path, container: str, *, track_id: int, number: int, width: int, height: int) -> Crop | None:
    """The crop of one video track of a file whose format FFmpeg calls `container`.

    `track_id` is the track's own id, `number` its place among the file's video tracks. None where there is no crop, or
    it leaves nothing of the stored `width` x `height`.
    """
    with path.open("rb") as file:
        try:
            if "matroska" in container:
                sides = _matroska_crop(file, number)
            elif "mp4" in container:
                sides = _mp4_crop(file, track_id, width, height)
            else:
                return None
        except (struct.error, ZeroDivisionError):  # cut short, or nonsense: whoever decodes it will say so
            return None
    if sides is None or not any(sides) or min(sides) < 0:
        return None
    left, top, right, bottom = sides
    return sides if left + right < width and top + bottom < height else None


def is_fragmented(path: Path) -> bool:
    """Whether an MP4 comes in fragments, each with an index of its own; else one index tells of every frame."""
    with path.open("rb") as file:
        try:
            return any(name == b"moof" for name, _, _ in _boxes(file, 0, None))
        except struct.error:
            return False


def _matroska_crop(file: BinaryIO, number: int) -> Crop | None:
    """The crop of the video track that comes as `number` (from 0) among the video tracks; None where there is none."""
    seen = 0
    for identity, start, size in _elements(file, 0, None):
        if identity != _SEGMENT:
            continue
        for inner, at, length in _elements(file, start, size):
            if inner != _TRACKS or length is None or length > _LARGEST:
                continue
            for entry, entry_at, entry_length in _elements(file, at, length):
                if entry != _ENTRY or entry_length is None:
                    continue
                fields = {name: (begin, count) for name, begin, count in _elements(file, entry_at, entry_length)}
                if _unsigned(file, fields.get(_TYPE)) != _VIDEO_TRACK:
                    continue
                if seen == number:
                    return _pixel_crop(file, fields.get(_VIDEO))
                seen += 1
            return None
    return None


def _mp4_crop(file: BinaryIO, track_id: int, width: int, height: int) -> Crop | None:
    """The crop of a track by its id, of a stored picture of `width` x `height`; None where there is none."""
    for track in _inside(file, (0, None), b"moov", b"trak"):
        if _track_id(file, track) != track_id:
            continue
        for start, size in _inside(file, track, b"mdia", b"minf", b"stbl", b"stsd"):
            # Version, flags and a count; then the entries, which are boxes too.
            for _, entry, length in _boxes(file, start + 8, size - 8):
                for name, at, count in _boxes(file, entry + _VISUAL_ENTRY, length - _VISUAL_ENTRY):
                    if name == b"clap" and count >= 32:
                        return _aperture(_bytes(file, at, 32), width, height)
    return None


def _elements(file: BinaryIO, start: int, size: int | None) -> Iterator[tuple[int, int, int | None]]:
    """EBML elements one after the other: (id, where the content begins, its length or None if it is not stated)."""
    at, end = start, None if size is None else start + size
    for _ in range(_MOST_ELEMENTS):
        if end is not None and at >= end:
            return
        file.seek(at)
        identity, _ = _vint(file, keep_marker=True)
        if identity is None:
            return
        length, unknown = _vint(file, keep_marker=False)
        if length is None:
            return
        content = file.tell()
        yield identity, content, None if unknown else length
        if unknown:
            return
        at = content + length


def _vint(file: BinaryIO, *, keep_marker: bool) -> tuple[int | None, bool]:
    """A number of variable length, and whether all of its bits are set, which means "not stated"."""
    first = file.read(1)
    if not first or not first[0]:
        return None, False
    more = 8 - first[0].bit_length()
    data = first + file.read(more)
    if len(data) <= more:
        return None, False
    value = int.from_bytes(data)
    mask = (1 << (7 * (more + 1))) - 1
    return (value if keep_marker else value & mask), value & mask == mask


def _unsigned(file: BinaryIO, place: tuple[int, int | None] | None) -> int:
    """A whole number in an element; 0, which is every crop's default, where it is absent."""
    if place is None or not place[1] or place[1] > 8:
        return 0
    return int.from_bytes(_bytes(file, place[0], place[1]))


def _pixel_crop(file: BinaryIO, place: tuple[int, int | None] | None) -> Crop | None:
    if place is None or place[1] is None:
        return None
    fields = {name: (begin, count) for name, begin, count in _elements(file, place[0], place[1])}
    left, top, right, bottom = (_unsigned(file, fields.get(side)) for side in (_LEFT, _TOP, _RIGHT, _BOTTOM))
    return left, top, right, bottom


def _boxes(file: BinaryIO, start: int, size: int | None) -> Iterator[tuple[bytes, int, int]]:
    """Boxes one after the other: (name, where the content begins, its length)."""
    end = file.seek(0, 2)
    if size is not None:
        end = min(end, start + size)
    at = start
    for _ in range(_MOST_ELEMENTS):
        if at + 8 > end:
            return
        length, name = struct.unpack(">I4s", _bytes(file, at, 8))
        head = 8
        if length == 1:
            (length,) = struct.unpack(">Q", _bytes(file, at + 8, 8))
            head = 16
        elif length == 0:
            length = end - at
        if length < head or at + head > end:
            return
        # Neither a damaged length nor a hostile one leads out of the box around it.
        length = min(length, end - at)
        yield name, at + head, length - head
        at += length


def _inside(file: BinaryIO, place: tuple[int, int | None], *path: bytes) -> Iterator[tuple[int, int]]:
    for name, start, size in _boxes(file, *place):
        if name != path[0]:
            continue
        if len(path) == 1:
            yield start, size
        else:
            yield from _inside(file, (start, size), *path[1:])


def _track_id(file: BinaryIO, track: tuple[int, int]) -> int | None:
    for start, _ in _inside(file, track, b"tkhd"):
        version = _bytes(file, start, 1)[0]
        return int.from_bytes(_bytes(file, start + (20 if version == 1 else 12), 4))
    return None


def _aperture(data: bytes, width: int, height: int) -> Crop:
    """A clean aperture's width, height and the offsets of its centre from the picture's, as fractions."""
    values = struct.unpack(">IIIIiIiI", data)
    wide, high, right, down = (Fraction(values[index], values[index + 1]) for index in range(0, 8, 2))
    left, top = (width - wide) / 2 + right, (height - high) / 2 + down
    return round(left), round(top), width - round(left + wide), height - round(top + high)


def _bytes(file: BinaryIO, at: int, count: int) -> bytes:
    """Exactly `count` bytes. Raises struct.error at the end of the file."""
    file.seek(at)
    data = file.read(count)
    if len(data) < count:
        raise struct.error("the file ends within an element")
    return data
