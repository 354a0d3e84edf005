"""Shards: WebDataset tars whose name is the hash of their bytes, so that writing one twice is writing it once."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.storage.folder import Folder

# The names of members: no folders, nothing hidden.
_NAME = re.compile(rb"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sample lies: `size` bytes of whole tar members from `offset` on in `shard` (relative to OUT); `crc32` of
    them."""

    shard: str
    offset: int
    size: int
    crc32: int


class ShardWriter:
    """Gathers samples into one tar in a local file; `close` publishes it under the name of its bytes."""

    def __init__(self, scratch: Path, folder: str, run_id: str) -> None:
        """`folder` is where in OUT the shard goes: shards, pending, layers or previews.

        The run's id is in the name beside the hash: a later run never makes a name again that this one may sweep.
        """
        self._path = scratch / f"{folder}.tar"
        self._folder, self._run_id = folder, run_id
        self._file = self._path.open("w+b")
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self._places: dict[str, tuple[int, int, int]] = {}

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append a sample: members sorted by name, no times, no owners, so that the bytes depend on nothing else."""
        start = self._file.tell()
        for name in sorted(members):
            entry = tarfile.TarInfo(f"{key}.{name}")
            entry.size = len(members[name])
            self._tar.addfile(entry, io.BytesIO(members[name]))
        end = self._file.tell()
        # Reads on to where the next sample is written.
        self._file.seek(start)
        self._places[key] = (start, end - start, zlib.crc32(self._file.read(end - start)))

    def close(self, out: Folder) -> dict[str, Place]:
        """Publish the shard, whole or not at all, and say where each sample lies."""
        self._tar.close()
        self._file.close()
        if not self._places:
            self._path.unlink()
            return {}
        with self._path.open("rb") as file:
            name = f"{self._folder}/{self._run_id}-{digest(file)}.tar"
        out.put(name, self._path)
        self._path.unlink(missing_ok=True)
        return {key: Place(name, *place) for key, place in self._places.items()}


def promised(name: str) -> str:
    """The digest in a shard's name."""
    return name.rpartition("-")[2].removesuffix(".tar")


def digest(file: BinaryIO) -> str:
    """The name of a shard: the first 32 hex digits of its SHA-256."""
    found = hashlib.sha256()
    while piece := file.read(1 << 20):
        found.update(piece)
    return found.hexdigest()[:32]


def parts(data: memoryview) -> Iterator[tuple[str, memoryview]]:
    """The files in (part of) a tar, as (name, view of their bytes), and nothing of theirs is copied.

    Raises `tarfile.TarError` for anything that a `ShardWriter` does not write: what is cut short, what is no plain
    file, and names that could lead out of a folder. (A parser that takes every tar there is, as `tarfile` has it, takes
    a trainer more time than all the rest of reading a sample.)
    """
    at = 0
    while at + tarfile.BLOCKSIZE <= len(data):
        block = bytes(data[at : at + tarfile.BLOCKSIZE])
        if not block[0] and not any(block):
            return
        name, size = _header(block)
        start = at + tarfile.BLOCKSIZE
        if size > len(data) - start:
            raise tarfile.ReadError(f"{name} is cut short: {len(data) - start} of {size} bytes")
        yield name, data[start : start + size]
        at = start + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    if at != len(data):
        raise tarfile.ReadError(f"it ends within a block, after {len(data)} bytes")


def _header(block: bytes) -> tuple[str, int]:
    """Name and size of a plain file, from its block [POSIX.1-1988, ustar]. Raises `tarfile.TarError` for another."""
    try:
        size, told = int(block[124:135], 8), int(block[148:154], 8)
    except ValueError as error:
        raise tarfile.ReadError("a header in it is damaged") from error
    # The sum of all bytes, the field that holds it taken as blanks.
    if size < 0 or told != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        raise tarfile.ReadError("a header in it is damaged")
    name = block[:100].rstrip(b"\0")
    # A plain file ("0") of this format, whose name is not continued in the field `prefix`.
    if block[156:157] != b"0" or block[257:263] != b"ustar\0" or block[345] or not _NAME.fullmatch(name):
        raise tarfile.ReadError(f"{name!r} in it is not a member of a sample")
    return name.decode(), size


def members(data: bytes) -> dict[str, dict[str, bytes]]:
    """The samples in (part of) a tar: key -> member name after the key -> bytes. Raises `tarfile.TarError`."""
    found: dict[str, dict[str, bytes]] = {}
    for path, content in parts(memoryview(data)):
        key, _, name = path.partition(".")
        found.setdefault(key, {})[name] = bytes(content)
    return found


def sample(out: Folder, clip_id: str, shard: str, offset: int, size: int) -> dict[str, bytes]:
    """One sample's members by a single ranged read. Raises `KeyError` when another sample lies there."""
    return members(out.read(shard, offset, size))[clip_id]
