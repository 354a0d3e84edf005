"""Messages between a sandbox's parent and child: pickles in a pipe, with arrays next to them instead of inside."""

from __future__ import annotations

import pickle
import struct
from typing import Any, BinaryIO

LENGTH = struct.Struct(">Q")
"""A number in the header of a message: the count of its parts, then the length of each."""


def pack(message: object) -> list[memoryview | bytes]:
    """A message as a pickle and the buffers of the arrays in it."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(message, 5, buffer_callback=buffers.append)
    return [body, *(buffer.raw() for buffer in buffers)]


def write(pipe: BinaryIO, parts: list[memoryview | bytes]) -> None:
    """Write a message from its packed parts."""
    lengths = [len(part) for part in parts]
    pipe.write(struct.pack(f">{1 + len(parts)}Q", len(parts), *lengths))
    for part in parts:
        pipe.write(part)
    pipe.flush()


def read(pipe: BinaryIO) -> Any:
    """The next message, or None at the end of the pipe."""
    head = pipe.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (count,) = LENGTH.unpack(head)
    lengths = struct.unpack(f">{count}Q", pipe.read(LENGTH.size * count))
    body, *buffers = [pipe.read(length) for length in lengths]
    return pickle.loads(body, buffers=buffers)  # noqa: S301
