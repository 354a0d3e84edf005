"""Arrays from a worker to its trainer through memory that both have mapped: written once, copied never, left behind
never.

A parcel lies in a segment, an anonymous file in memory (memfd) whose descriptor went through the socket when it was
new. Once the receiver holds no array of a parcel any more, its segment is used again: a page that is new costs ten
times what it costs to fill one. The kernel frees a segment with its last mapping, whoever was killed.
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
# A parcel: its segment, whether that is new (its descriptor comes along), where its header begins and how long it is.
_PARCEL = struct.Struct("<Q?QQ")
# Where an array may begin: a cache line, as kernels for CPU and copies to a GPU like it.
_ALIGNED = 64
# Segments that may wait to be used again: three of any size, more of small ones, which cost little to keep.
_FEW, _MANY, _BYTES = 3, 16, 64 << 20


def tell(sock: socket.socket, message: Any) -> None:
    """Send something JSON-able, without arrays."""
    text = json.dumps(message).encode()
    sock.sendall(_LENGTH.pack(len(text)) + text)


def hear(sock: socket.socket) -> Any:
    """What `tell` sent. Raises EOFError when the other side is gone."""
    (length,) = _LENGTH.unpack(_exactly(sock, _LENGTH.size))
    return json.loads(_exactly(sock, length))


class Sender:
    """The worker's side."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._segments: dict[int, mmap.mmap] = {}
        self._free: list[int] = []
        self._made = 0

    def free(self, segments: Sequence[int]) -> None:
        """The receiver holds nothing of these any more."""
        self._free += segments

    def send(self, header: Any, arrays: Sequence[Array]) -> None:
        """Send a JSON-able header and arrays."""
        told, at = [], 0
        for array in arrays:
            told.append((array.dtype.str, array.shape, at))
            at += _up(array.nbytes)
        gone = self._let_go()
        # The header comes last, as it says where the arrays lie.
        text = json.dumps([header, told, gone]).encode()
        number, file = self._segment(at + len(text))
        memory = self._segments[number]
        for array, (kind, shape, offset) in zip(arrays, told, strict=True):
            np.copyto(np.ndarray(shape, kind, memory, offset), array)
        memory[at : at + len(text)] = text
        message = _PARCEL.pack(number, file is not None, at, len(text))
        if file is None:
            self._sock.sendall(message)
        else:
            socket.send_fds(self._sock, [message], [file])
            os.close(file)

    def _segment(self, size: int) -> tuple[int, int | None]:
        """A segment of `size` bytes or more; with its descriptor if it is new."""
        fit = [number for number in self._free if len(self._segments[number]) >= size]
        if fit:
            number = min(fit, key=lambda one: len(self._segments[one]))
            self._free.remove(number)
            return number, None
        file = os.memfd_create("vdot")
        # Room for a parcel that is a little larger, as headers differ.
        os.ftruncate(file, size + size // 16 + mmap.PAGESIZE)
        self._made += 1
        self._segments[self._made] = mmap.mmap(file, 0)
        return self._made, file

    def _let_go(self) -> list[int]:
        """The smallest of those that wait, while they are more than enough."""
        gone = []
        waiting = sum(len(self._segments[number]) for number in self._free)
        while len(self._free) > _MANY or (len(self._free) > _FEW and waiting > _BYTES):
            number = min(self._free, key=lambda one: len(self._segments[one]))
            self._free.remove(number)
            waiting -= len(self._segments.pop(number))
            gone.append(number)
        return gone


class _Held(weakref.ref[Array]):
    """A segment that an array of somebody's still lies in."""

    number: int


class Receiver:
    """The trainer's side."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._segments: dict[int, mmap.mmap] = {}
        self._held: dict[int, _Held] = {}
        # Filled by whichever thread lets go of the last array.
        self._released: deque[_Held] = deque()

    def receive(self) -> tuple[Any, list[Array]]:
        """The header and the arrays of one parcel; they can be written to. Raises EOFError when the sender is gone."""
        message, files, _, _ = socket.recv_fds(self._sock, _PARCEL.size, 1)
        if not message:
            raise EOFError
        if len(message) < _PARCEL.size:
            message += _exactly(self._sock, _PARCEL.size - len(message))
        number, new, at, length = _PARCEL.unpack(message)
        if new and not files:
            raise RunError("no descriptor is left for a batch: hold fewer batches, or raise the limit (ulimit -n)")
        if new:
            # Mapped all at once: a fault for each page would cost more.
            self._segments[number] = mmap.mmap(files[0], 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
            os.close(files[0])
        memory = self._segments[number]
        header, told, gone = json.loads(memory[at : at + length])
        for other in gone:
            del self._segments[other]
        # What every array of this parcel is a view of, and lives as long as any of them. No Python runs when it goes: a
        # Ctrl-C that fell into that would be lost.
        whole = np.frombuffer(memory, np.uint8)
        self._held[number] = _Held(whole, self._released.append)
        self._held[number].number = number
        arrays = []
        for kind, shape, offset in told:
            dtype = np.dtype(kind)
            size = int(np.prod(shape)) * dtype.itemsize
            arrays.append(whole[offset : offset + size].view(dtype).reshape(shape))
        return header, arrays

    def released(self) -> list[int]:
        """The segments of which nothing is held any more, for `Sender.free`; each is named once."""
        return [self._released.popleft().number for _ in range(len(self._released))]


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _up(size: int) -> int:
    """The next place where an array may begin."""
    return -(-size // _ALIGNED) * _ALIGNED
