"""Reads what PyAV does not pass on from containers: the visible part of the picture, and whether there is an index.

The ffmpeg program applies Matroska's PixelCrop and MP4's clean aperture; its libraries leave them to the caller.
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

# Headers are small: a larger element is damaged, or irrelevant here.
_LARGEST = 1 << 22
# The most elements that are read in one file, so that a damaged one cannot hold up the run.
_MOST_ELEMENTS = 100_000

_SEGMENT, _TRACKS, _ENTRY, _TYPE, _VIDEO = 0x18538067, 0x1654AE6B, 0xAE, 0x83, 0xE0
_LEFT, _TOP, _RIGHT, _BOTTOM = 0x54CC, 0x54BB, 0x54DD, 0x54AA
_VIDEO_TRACK = 1
# Length of the fixed part of a sample description entry, before its boxes. [ISO/IEC 14496-12, section 12.1.3]
_VISUAL_ENTRY = 78


def read_crop(path: Path, container: str, *, track_id: int, number: int, width: int, height: int) -> Crop | None:
    """The crop of one video track of a file whose format FFmpeg calls `container`.

    `track_id` is the track's own id, `number` its place among the file's video tracks. None if there is no crop, or
    it leaves nothing of the stored `width` x `height`.
    """
    with path.open("rb") as file:
        try:
            if "matroska" in container:
                sides = _read_matroska_crop(file, number)
            elif "mp4" in container:
                sides = _read_mp4_crop(file, track_id, width, height)
            else:
                return None
        except (struct.error, ZeroDivisionError):  # cut short, or nonsense: decoding will report it
            return None
    if sides is None or not any(sides) or min(sides) < 0:
        return None
    left, top, right, bottom = sides
    return sides if left + right < width and top + bottom < height else None


def is_fragmented(path: Path) -> bool:
    """Whether an MP4 has fragments, each with its own index; otherwise one index lists every frame."""
    with path.open("rb") as file:
        try:
            return any(name == b"moof" for name, _, _ in _iterate_boxes(file, 0, None))
        except struct.error:
            return False


def _read_matroska_crop(file: BinaryIO, number: int) -> Crop | None:
    """The crop of video track `number` (from 0); None if there is none."""
    video_tracks = 0
    for element, start, size in _iterate_elements(file, 0, None):
        if element != _SEGMENT:
            continue
        for child, offset, length in _iterate_elements(file, start, size):
            if child != _TRACKS or length is None or length > _LARGEST:
                continue
            for entry, entry_at, entry_length in _iterate_elements(file, offset, length):
                if entry != _ENTRY or entry_length is None:
                    continue
                fields = {
                    name: (begin, count) for name, begin, count in _iterate_elements(file, entry_at, entry_length)
                }
                if _read_unsigned(file, fields.get(_TYPE)) != _VIDEO_TRACK:
                    continue
                if video_tracks == number:
                    return _read_pixel_crop(file, fields.get(_VIDEO))
                video_tracks += 1
            return None
    return None


def _read_mp4_crop(file: BinaryIO, track_id: int, width: int, height: int) -> Crop | None:
    """The crop of a track by its id, of a stored picture of `width` x `height`; None if there is none."""
    for track in _find_boxes(file, (0, None), b"moov", b"trak"):
        if _read_track_id(file, track) != track_id:
            continue
        for start, size in _find_boxes(file, track, b"mdia", b"minf", b"stbl", b"stsd"):
            # Version, flags and a count; then the entries, which are boxes too.
            for _, entry, length in _iterate_boxes(file, start + 8, size - 8):
                for name, offset, count in _iterate_boxes(file, entry + _VISUAL_ENTRY, length - _VISUAL_ENTRY):
                    if name == b"clap" and count >= 32:
                        return _parse_aperture(_read_bytes(file, offset, 32), width, height)
    return None


def _iterate_elements(file: BinaryIO, start: int, size: int | None) -> Iterator[tuple[int, int, int | None]]:
    """EBML elements in order: (id, where the content begins, its length or None if it is not stated)."""
    offset, end = start, None if size is None else start + size
    for _ in range(_MOST_ELEMENTS):
        if end is not None and offset >= end:
            return
        file.seek(offset)
        identity, _ = _read_vint(file, keep_marker=True)
        if identity is None:
            return
        length, unknown = _read_vint(file, keep_marker=False)
        if length is None:
            return
        content = file.tell()
        yield identity, content, None if unknown else length
        if unknown:
            return
        offset = content + length


def _read_vint(file: BinaryIO, *, keep_marker: bool) -> tuple[int | None, bool]:
    """A number of variable length, and whether all its bits are set, which means "not stated"."""
    first = file.read(1)
    if not first or not first[0]:
        return None, False
    extra = 8 - first[0].bit_length()
    data = first + file.read(extra)
    if len(data) <= extra:
        return None, False
    value = int.from_bytes(data)
    mask = (1 << (7 * (extra + 1))) - 1
    return (value if keep_marker else value & mask), value & mask == mask


def _read_unsigned(file: BinaryIO, place: tuple[int, int | None] | None) -> int:
    """An unsigned integer in an element; 0, the default of every crop, if it is absent."""
    if place is None or not place[1] or place[1] > 8:
        return 0
    return int.from_bytes(_read_bytes(file, place[0], place[1]))


def _read_pixel_crop(file: BinaryIO, place: tuple[int, int | None] | None) -> Crop | None:
    if place is None or place[1] is None:
        return None
    fields = {name: (begin, count) for name, begin, count in _iterate_elements(file, place[0], place[1])}
    left, top, right, bottom = (_read_unsigned(file, fields.get(side)) for side in (_LEFT, _TOP, _RIGHT, _BOTTOM))
    return left, top, right, bottom


def _iterate_boxes(file: BinaryIO, start: int, size: int | None) -> Iterator[tuple[bytes, int, int]]:
    """Boxes in order: (name, where the content begins, its length)."""
    end = file.seek(0, 2)
    if size is not None:
        end = min(end, start + size)
    offset = start
    for _ in range(_MOST_ELEMENTS):
        if offset + 8 > end:
            return
        length, name = struct.unpack(">I4s", _read_bytes(file, offset, 8))
        head = 8
        if length == 1:
            (length,) = struct.unpack(">Q", _read_bytes(file, offset + 8, 8))
            head = 16
        elif length == 0:
            length = end - offset
        if length < head or offset + head > end:
            return
        # A damaged or hostile length must not lead out of the enclosing box.
        length = min(length, end - offset)
        yield name, offset + head, length - head
        offset += length


def _find_boxes(file: BinaryIO, place: tuple[int, int | None], *path: bytes) -> Iterator[tuple[int, int]]:
    for name, start, size in _iterate_boxes(file, *place):
        if name != path[0]:
            continue
        if len(path) == 1:
            yield start, size
        else:
            yield from _find_boxes(file, (start, size), *path[1:])


def _read_track_id(file: BinaryIO, track: tuple[int, int]) -> int | None:
    for start, _ in _find_boxes(file, track, b"tkhd"):
        version = _read_bytes(file, start, 1)[0]
        return int.from_bytes(_read_bytes(file, start + (20 if version == 1 else 12), 4))
    return None


def _parse_aperture(data: bytes, width: int, height: int) -> Crop:
    """The crop of a clean aperture, stored as its size and its centre's offsets from the picture's, in fractions."""
    values = struct.unpack(">IIIIiIiI", data)
    aperture_width, aperture_height, right, down = (
        Fraction(values[index], values[index + 1]) for index in range(0, 8, 2)
    )
    left, top = (width - aperture_width) / 2 + right, (height - aperture_height) / 2 + down
    return round(left), round(top), width - round(left + aperture_width), height - round(top + aperture_height)


def _read_bytes(file: BinaryIO, offset: int, count: int) -> bytes:
    """Exactly `count` bytes. Raises struct.error at the end of the file."""
    file.seek(offset)
    data = file.read(count)
    if len(data) < count:
        raise struct.error("the file ends within an element")
    return data
