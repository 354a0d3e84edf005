"""Shards: WebDataset tars whose name is the hash of their bytes, so that writing one twice is writing it once."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.storage import Folder


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sample lies: `size` bytes of whole tar members from `offset` on in `shard` (relative to OUT)."""

    shard: str
    offset: int
    size: int


class ShardWriter:
    """Gathers samples into one tar in a local file; `close` publishes it under the name of its bytes."""

    def __init__(self, scratch: Path, folder: str, run_id: str) -> None:
        """`folder` is where in OUT the shard goes: shards, pending, layers or previews.

        The run's id is in the name beside the hash: a later run never makes a name again that this one may sweep.
        """
        self._path = scratch / f"{folder}.tar"
        self._folder, self._run_id = folder, run_id
        self._file = self._path.open("wb")
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self._places: dict[str, tuple[int, int]] = {}

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append a sample: members sorted by name, no times, no owners, so that the bytes depend on nothing else."""
        start = self._file.tell()
        for name in sorted(members):
            entry = tarfile.TarInfo(f"{key}.{name}")
            entry.size = len(members[name])
            self._tar.addfile(entry, io.BytesIO(members[name]))
        self._places[key] = (start, self._file.tell() - start)

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
        return {key: Place(name, start, size) for key, (start, size) in self._places.items()}


def promised(name: str) -> str:
    """The digest in a shard's name."""
    return name.rpartition("-")[2].removesuffix(".tar")


def digest(file: BinaryIO) -> str:
    """The name of a shard: the first 32 hex digits of its SHA-256."""
    found = hashlib.sha256()
    while piece := file.read(1 << 20):
        found.update(piece)
    return found.hexdigest()[:32]


def members(data: bytes) -> dict[str, dict[str, bytes]]:
    """The samples in (part of) a tar: key -> member name after the key -> bytes. Raises `tarfile.TarError`."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for entry in tar:
            file = tar.extractfile(entry)
            key, _, name = entry.name.partition(".")
            if file is not None:
                found.setdefault(key, {})[name] = file.read()
    return found


def sample(out: Folder, clip_id: str, shard: str, offset: int, size: int) -> dict[str, bytes]:
    """One sample's members by a single ranged read. Raises `KeyError` when another sample lies there."""
    return members(out.read(shard, offset, size))[clip_id]
