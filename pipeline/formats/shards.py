"""Shards: WebDataset tars named by the hash of their bytes, so that writing one twice changes nothing."""

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
    """Where a sample is: `size` bytes of complete tar members from `offset` on in `shard` (relative to OUT), and their
    `crc32`."""

    shard: str
    offset: int
    size: int
    crc32: int


class ShardWriter:
    """Collects samples in one tar in a local file; `close` publishes it under the hash of its bytes."""

    def __init__(self, scratch: Path, folder: str, run_id: str) -> None:
        """`folder` is where in OUT the shard goes: shards, pending, layers or previews.

        The name holds the run's id too, so that a later run never reuses a name that this one may sweep.
        """
        self._path = scratch / f"{folder}.tar"
        self._folder, self._run_id = folder, run_id
        self._file = self._path.open("w+b")
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self._places: dict[str, tuple[int, int, int]] = {}

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append a sample: members sorted by name, no times or owners, so that its bytes depend only on the members."""
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
        """Publish the shard, whole or not at all, and return the place of each sample."""
        self._tar.close()
        self._file.close()
        if not self._places:
            self._path.unlink()
            return {}
        with self._path.open("rb") as file:
            name = f"{self._folder}/{self._run_id}-{compute_digest(file)}.tar"
        out.put(name, self._path)
        self._path.unlink(missing_ok=True)
        return {key: Place(name, *place) for key, place in self._places.items()}


def digest_in_name(name: str) -> str:
    """The digest in a shard's name."""
    return name.rpartition("-")[2].removesuffix(".tar")


def compute_digest(file: BinaryIO) -> str:
    """The digest that names a shard: the first 32 hex digits of its SHA-256."""
    hasher = hashlib.sha256()
    while chunk := file.read(1 << 20):
        hasher.update(chunk)
    return hasher.hexdigest()[:32]


def iterate_members(data: memoryview) -> Iterator[tuple[str, memoryview]]:
    """The files in (part of) a tar, as (name, view of their bytes), without copying.

    Raises `tarfile.TarError` for anything that a `ShardWriter` does not write: truncated data, anything but plain
    files, and names that could lead out of a folder. (A parser for every kind of tar, such as `tarfile`, costs a
    trainer more time than everything else in reading a sample.)
    """
    position = 0
    while position + tarfile.BLOCKSIZE <= len(data):
        block = bytes(data[position : position + tarfile.BLOCKSIZE])
        if not block[0] and not any(block):
            return
        name, size = _parse_header(block)
        start = position + tarfile.BLOCKSIZE
        if size > len(data) - start:
            raise tarfile.ReadError(f"{name} is cut short: {len(data) - start} of {size} bytes")
        yield name, data[start : start + size]
        position = start + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    if position != len(data):
        raise tarfile.ReadError(f"it ends within a block, after {len(data)} bytes")


def _parse_header(block: bytes) -> tuple[str, int]:
    """Name and size of a plain file, from its block [POSIX.1-1988, ustar]. Raises `tarfile.TarError` for any other."""
    try:
        size, checksum = int(block[124:135], 8), int(block[148:154], 8)
    except ValueError as error:
        raise tarfile.ReadError("a header in it is damaged") from error
    # The sum of all bytes, with blanks in place of the checksum field.
    if size < 0 or checksum != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        raise tarfile.ReadError("a header in it is damaged")
    name = block[:100].rstrip(b"\0")
    # A plain file ("0") of this format, with no part of its name in the field `prefix`.
    if block[156:157] != b"0" or block[257:263] != b"ustar\0" or block[345] or not _NAME.fullmatch(name):
        raise tarfile.ReadError(f"{name!r} in it is not a member of a sample")
    return name.decode(), size


def group_members(data: bytes) -> dict[str, dict[str, bytes]]:
    """The samples in (part of) a tar: key -> member name after the key -> bytes. Raises `tarfile.TarError`."""
    samples: dict[str, dict[str, bytes]] = {}
    for path, content in iterate_members(memoryview(data)):
        key, _, name = path.partition(".")
        samples.setdefault(key, {})[name] = bytes(content)
    return samples


def read_sample(out: Folder, clip_id: str, shard: str, offset: int, size: int) -> dict[str, bytes]:
    """The members of one sample, by a single ranged read. Raises `KeyError` when another sample is there."""
    return group_members(out.read(shard, offset, size))[clip_id]
