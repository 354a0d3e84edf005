"""Damages the bytes of video files as disks, networks and the programs that write them do."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

Mutation = Callable[[bytearray, bytes, random.Random], None]
"""Changes a file's bytes in place; the second argument is another video file, for mutations that mix two."""

# Boxes, lists and elements with the positions, durations and formats of frames: of MP4, AVI, Matroska (Cues, SeekHead,
# SimpleBlock's cluster, Tracks) and FLV.
_INDEX = (
    *(b"moov", b"mvhd", b"tkhd", b"mdhd", b"stsd", b"stts", b"ctts", b"stss", b"stsz", b"stsc", b"stco", b"elst"),
    *(b"moof", b"trun", b"tfhd", b"avcC", b"hvcC", b"av1C", b"idx1", b"avih", b"strh", b"strf", b"movi"),
    *(b"\x1c\x53\xbb\x6b", b"\x11\x4d\x9b\x74", b"\x1f\x43\xb6\x75", b"\x16\x54\xae\x6b", b"onMetaData"),
)
# The farthest that a changed field of an index is from its name, in bytes.
_FIELD = 48
# Values that programs write into a field of four bytes by mistake.
_ODD = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def _pick_span(data: bytes | bytearray, rng: random.Random, limit: int) -> tuple[int, int]:
    """A random place and length within a file."""
    length = rng.randint(1, max(1, min(limit, len(data) - 1)))
    return rng.randint(0, max(0, len(data) - length)), length


def flip_bits(data: bytearray, _: bytes, rng: random.Random) -> None:
    """Flips 1 to 64 bits anywhere."""
    for _number in range(2 ** rng.randint(0, 6)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def zero_run(data: bytearray, _: bytes, rng: random.Random) -> None:
    """Zeroes where a disk lost blocks."""
    start, length = _pick_span(data, rng, 8192)
    data[start : start + length] = bytes(length)


def noise_run(data: bytearray, _: bytes, rng: random.Random) -> None:
    """Random bytes in place of some."""
    start, length = _pick_span(data, rng, 2048)
    data[start : start + length] = rng.randbytes(length)


def truncate(data: bytearray, _: bytes, rng: random.Random) -> None:
    """A download that stopped."""
    del data[rng.randrange(1, len(data)) :]


def lose_chunk(data: bytearray, _: bytes, rng: random.Random) -> None:
    """A part is missing; everything after it moves up."""
    start, length = _pick_span(data, rng, 4096)
    del data[start : start + length]


def double_chunk(data: bytearray, _: bytes, rng: random.Random) -> None:
    """A part occurs twice."""
    start, length = _pick_span(data, rng, 4096)
    data[start:start] = data[start : start + length]


def swap_chunks(data: bytearray, _: bytes, rng: random.Random) -> None:
    """Two parts of the same length, swapped."""
    length = rng.randint(1, max(1, min(4096, len(data) // 3)))
    first = rng.randint(0, len(data) // 2 - length) if len(data) // 2 > length else 0
    second = rng.randint(len(data) // 2, len(data) - length)
    data[first : first + length], data[second : second + length] = (
        data[second : second + length],
        data[first : first + length],
    )


def splice(data: bytearray, donor: bytes, rng: random.Random) -> None:
    """The beginning of one file, then the end of another."""
    share = rng.uniform(0.05, 0.95)
    data[int(len(data) * share) :] = donor[int(len(donor) * share) :]


def append_garbage(data: bytearray, donor: bytes, rng: random.Random) -> None:
    """Zeroes, noise, or a complete other file after the end."""
    length = rng.randint(1, 4096)
    data += rng.choice((bytes(length), rng.randbytes(length), donor))


def edit_header(data: bytearray, _: bytes, rng: random.Random) -> None:
    """A field near the beginning set to what programs write by mistake."""
    _write_odd_value(data, rng.randrange(max(1, min(512, len(data) - 4))), rng)


def edit_index(data: bytearray, donor: bytes, rng: random.Random) -> None:
    """A field of an index set to what programs write by mistake; the header's where a file has no index."""
    names = [name for name in _INDEX if name in data]
    if not names:
        edit_header(data, donor, rng)
        return
    position = data.index(rng.choice(names))
    # From the length field before a box's name.
    _write_odd_value(data, min(max(0, position + rng.randint(-4, _FIELD)), len(data) - 1), rng)


def _write_odd_value(data: bytearray, position: int, rng: random.Random) -> None:
    order, size = rng.choice("<>"), rng.choice((1, 2, 4))
    value = struct.pack(f"{order}I", rng.choice((*_ODD, rng.randrange(2**32))))
    data[position : position + size] = value[:size]


MUTATIONS: dict[str, Mutation] = {
    mutation.__name__: mutation
    for mutation in (
        *(flip_bits, zero_run, noise_run, truncate, lose_chunk, double_chunk, swap_chunks, splice),
        *(append_garbage, edit_header, edit_index),
    )
}
"""Name -> mutation."""


def mutate(name: str, data: bytes, donor: bytes, seed: str) -> bytes:
    """A copy of a file after the mutation of this name, different from the file; the same for the same seed."""
    rng = random.Random(seed)  # noqa: S311
    copy = bytearray(data)
    while copy == data:
        MUTATIONS[name](copy, donor, rng)
    return bytes(copy)
