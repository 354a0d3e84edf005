"""Ways in which the bytes of a video file go wrong: on a disk, on a line, and in programs that write them."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

Mutation = Callable[[bytearray, bytes, random.Random], None]
"""Changes a file's bytes in place; the second argument is another video file, for what mixes two."""

# Boxes, lists and elements that say where the frames are, how long they last and what they are: of MP4, AVI, Matroska
# (Cues, SeekHead, SimpleBlock's cluster, Tracks) and FLV.
_INDEX = (
    *(b"moov", b"mvhd", b"tkhd", b"mdhd", b"stsd", b"stts", b"ctts", b"stss", b"stsz", b"stsc", b"stco", b"elst"),
    *(b"moof", b"trun", b"tfhd", b"avcC", b"hvcC", b"av1C", b"idx1", b"avih", b"strh", b"strf", b"movi"),
    *(b"\x1c\x53\xbb\x6b", b"\x11\x4d\x9b\x74", b"\x1f\x43\xb6\x75", b"\x16\x54\xae\x6b", b"onMetaData"),
)
# How far from its name a field of an index is changed.
_FIELD = 48
# What programs write by mistake into a field of four bytes.
_ODD = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def _span(data: bytes | bytearray, dice: random.Random, most: int) -> tuple[int, int]:
    """A random place and length within a file."""
    length = dice.randint(1, max(1, min(most, len(data) - 1)))
    return dice.randint(0, max(0, len(data) - length)), length


def flip_bits(data: bytearray, _: bytes, dice: random.Random) -> None:
    """One to 64 bits anywhere."""
    for _number in range(2 ** dice.randint(0, 6)):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)


def zero_run(data: bytearray, _: bytes, dice: random.Random) -> None:
    """Zeroes where a disk lost blocks."""
    start, length = _span(data, dice, 8192)
    data[start : start + length] = bytes(length)


def noise_run(data: bytearray, _: bytes, dice: random.Random) -> None:
    """Bytes of anything else in place of some."""
    start, length = _span(data, dice, 2048)
    data[start : start + length] = dice.randbytes(length)


def truncate(data: bytearray, _: bytes, dice: random.Random) -> None:
    """A download that stopped."""
    del data[dice.randrange(1, len(data)) :]


def lose_chunk(data: bytearray, _: bytes, dice: random.Random) -> None:
    """A part that never came; all that follows moves up."""
    start, length = _span(data, dice, 4096)
    del data[start : start + length]


def double_chunk(data: bytearray, _: bytes, dice: random.Random) -> None:
    """A part that came twice."""
    start, length = _span(data, dice, 4096)
    data[start:start] = data[start : start + length]


def swap_chunks(data: bytearray, _: bytes, dice: random.Random) -> None:
    """Two parts of the same length, each in the other's place."""
    length = dice.randint(1, max(1, min(4096, len(data) // 3)))
    first = dice.randint(0, len(data) // 2 - length) if len(data) // 2 > length else 0
    second = dice.randint(len(data) // 2, len(data) - length)
    data[first : first + length], data[second : second + length] = (
        data[second : second + length],
        data[first : first + length],
    )


def splice(data: bytearray, other: bytes, dice: random.Random) -> None:
    """The beginning of one file, then the end of another."""
    share = dice.uniform(0.05, 0.95)
    data[int(len(data) * share) :] = other[int(len(other) * share) :]


def append_garbage(data: bytearray, other: bytes, dice: random.Random) -> None:
    """Zeroes, noise, or another whole file after the end."""
    length = dice.randint(1, 4096)
    data += dice.choice((bytes(length), dice.randbytes(length), other))


def edit_header(data: bytearray, _: bytes, dice: random.Random) -> None:
    """A field near the beginning set to what programs write by mistake."""
    _set(data, dice.randrange(max(1, min(512, len(data) - 4))), dice)


def edit_index(data: bytearray, other: bytes, dice: random.Random) -> None:
    """A field of an index set to what programs write by mistake; the header's where a file has no index."""
    names = [name for name in _INDEX if name in data]
    if not names:
        edit_header(data, other, dice)
        return
    at = data.index(dice.choice(names))
    # From the length before a box's name on.
    _set(data, min(max(0, at + dice.randint(-4, _FIELD)), len(data) - 1), dice)


def _set(data: bytearray, at: int, dice: random.Random) -> None:
    order, size = dice.choice("<>"), dice.choice((1, 2, 4))
    value = struct.pack(f"{order}I", dice.choice((*_ODD, dice.randrange(2**32))))
    data[at : at + size] = value[:size]


MUTATIONS: dict[str, Mutation] = {
    mutation.__name__: mutation
    for mutation in (
        *(flip_bits, zero_run, noise_run, truncate, lose_chunk, double_chunk, swap_chunks, splice),
        *(append_garbage, edit_header, edit_index),
    )
}
"""Name -> mutation."""


def mutated(name: str, data: bytes, other: bytes, seed: str) -> bytes:
    """A copy of a file after the mutation of this name, which changes something; the same for the same seed."""
    dice = random.Random(seed)  # noqa: S311
    copy = bytearray(data)
    while copy == data:
        MUTATIONS[name](copy, other, dice)
    return bytes(copy)
