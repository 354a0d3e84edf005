"""Transfer of arrays from a worker to its trainer through shared memory: written once, never copied, never leaked.

A parcel is in a segment, an anonymous file in memory (memfd) whose descriptor is sent through the socket when it is
new. Once the receiver holds no array of a parcel any more, its segment is reused: a new page costs ten times as much as
filling one. The kernel frees a segment with its last mapping, whichever process is killed.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import struct
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RunError

Array = NDArray[Any]

_LENGTH = struct.Struct("<Q")
# A parcel: its segment, whether that is new (its descriptor comes along), the offset and length of its header.
_PARCEL = struct.Struct("<Q?QQ")
# The alignment of arrays: a cache line, which suits CPU kernels and copies to a GPU.
_ALIGNED = 64
# Segments kept for reuse: three of any size, more of small ones, which cost little.
_FEW, _MANY, _BYTES = 3, 16, 64 << 20


def send_message(sock: socket.socket, message: Any) -> None:
    """Send a JSON-able message, without arrays."""
    text = json.dumps(message).encode()
    sock.sendall(_LENGTH.pack(len(text)) + text)


def receive_message(sock: socket.socket) -> Any:
    """Receive a message from `send_message`. Raises EOFError when the other side is gone."""
    (length,) = _LENGTH.unpack(_receive_exactly(sock, _LENGTH.size))
    return json.loads(_receive_exactly(sock, length))


class Sender:
    """The worker's side."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._segments: dict[int, mmap.mmap] = {}
        self._free: list[int] = []
        self._created = 0

    def free(self, segments: Sequence[int]) -> None:
        """Take back segments of which the receiver holds no array any more."""
        self._free += segments

    def send(self, header: Any, arrays: Sequence[Array]) -> None:
        """Send a JSON-able header and arrays."""
        layout, end = [], 0
        for array in arrays:
            layout.append((array.dtype.str, array.shape, end))
            end += _align(array.nbytes)
        dropped = self._trim_segments()
        # The header comes last, because it holds the offsets of the arrays.
        text = json.dumps([header, layout, dropped]).encode()
        number, file = self._segment(end + len(text))
        memory = self._segments[number]
        for array, (dtype, shape, offset) in zip(arrays, layout, strict=True):
            np.copyto(np.ndarray(shape, dtype, memory, offset), array)
        memory[end : end + len(text)] = text
        message = _PARCEL.pack(number, file is not None, end, len(text))
        if file is None:
            self._sock.sendall(message)
        else:
            socket.send_fds(self._sock, [message], [file])
            os.close(file)

    def _segment(self, size: int) -> tuple[int, int | None]:
        """A segment of at least `size` bytes, and its descriptor if it is new."""
        candidates = [number for number in self._free if len(self._segments[number]) >= size]
        if candidates:
            number = min(candidates, key=lambda candidate: len(self._segments[candidate]))
            self._free.remove(number)
            return number, None
        file = os.memfd_create("vdot")
        # Some slack for slightly larger parcels, because headers differ.
        os.ftruncate(file, size + size // 16 + mmap.PAGESIZE)
        self._created += 1
        self._segments[self._created] = mmap.mmap(file, 0)
        return self._created, file

    def _trim_segments(self) -> list[int]:
        """Drop the smallest free segments while there are too many; returns their numbers."""
        dropped = []
        waiting = sum(len(self._segments[number]) for number in self._free)
        while len(self._free) > _MANY or (len(self._free) > _FEW and waiting > _BYTES):
            number = min(self._free, key=lambda candidate: len(self._segments[candidate]))
            self._free.remove(number)
            waiting -= len(self._segments.pop(number))
            dropped.append(number)
        return dropped


class _SegmentRef(weakref.ref[Array]):
    """A reference to a segment that is still in use by an array."""

    number: int


class Receiver:
    """The trainer's side."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._segments: dict[int, mmap.mmap] = {}
        self._references: dict[int, _SegmentRef] = {}
        # Filled by whichever thread drops the last array.
        self._released: deque[_SegmentRef] = deque()

    def receive(self) -> tuple[Any, list[Array]]:
        """The header and the writable arrays of one parcel. Raises EOFError when the sender is gone."""
        message, files, _, _ = socket.recv_fds(self._sock, _PARCEL.size, 1)
        if not message:
            raise EOFError
        if len(message) < _PARCEL.size:
            message += _receive_exactly(self._sock, _PARCEL.size - len(message))
        number, new, header_offset, length = _PARCEL.unpack(message)
        if new and not files:
            raise RunError("no descriptor is left for a batch: hold fewer batches, or raise the limit (ulimit -n)")
        if new:
            # Populated at once: a page fault for each page would cost more.
            self._segments[number] = mmap.mmap(files[0], 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
            os.close(files[0])
        memory = self._segments[number]
        header, layout, dropped = json.loads(memory[header_offset : header_offset + length])
        for segment in dropped:
            del self._segments[segment]
        # All arrays of this parcel are views of this one, which lives as long as any of them. Its callback is in C: a
        # Ctrl-C during Python code there would be lost.
        parcel = np.frombuffer(memory, np.uint8)
        self._references[number] = _SegmentRef(parcel, self._released.append)
        self._references[number].number = number
        arrays = []
        for dtype_name, shape, offset in layout:
            dtype = np.dtype(dtype_name)
            size = int(np.prod(shape)) * dtype.itemsize
            arrays.append(parcel[offset : offset + size].view(dtype).reshape(shape))
        return header, arrays

    def take_released(self) -> list[int]:
        """The segments that are no longer in use, for `Sender.free`; each is returned once."""
        return [self._released.popleft().number for _ in range(len(self._released))]


def _receive_exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _align(size: int) -> int:
    """A size rounded up to the alignment of arrays."""
    return -(-size // _ALIGNED) * _ALIGNED
