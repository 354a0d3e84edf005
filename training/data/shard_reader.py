"""Reading of a clip's members from a dataset's shards: memory-mapped on a local disk, by one ranged read elsewhere."""

from __future__ import annotations

import mmap
import os
import tarfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import RunError
from pipeline.formats.shards import iterate_members
from pipeline.storage.folder import Folder
from training.data.range_cache import Cache

# Shards that stay mapped; each holds a file descriptor.
_MAPS = 128


class Place(NamedTuple):
    """The location of a clip's layer: `size` bytes at `offset` in `shard`, a path relative to the dataset, and the
    CRC-32 of these bytes if known."""

    layer: str
    shard: str
    offset: int
    size: int
    crc32: int | None


class DamagedError(Exception):
    """A clip's bytes are missing or damaged; other clips can still be read."""


class Reader:
    """Reads from any number of datasets. Not thread-safe."""

    def __init__(self, cache: Cache | None = None) -> None:
        """`cache`: for datasets that are not on a local disk."""
        self._cache = cache
        self._folders: dict[str, Folder] = {}
        self._maps: OrderedDict[tuple[str, str], mmap.mmap | None] = OrderedDict()

    def members(self, dataset: str, clip_id: str, place: Place, *, check: bool) -> dict[str, memoryview]:
        """The members of one layer of a clip, by their names after the clip id. From a local disk they are read-only
        views of the mapped shard, without a copy. `check`: compare with the CRC-32, which takes 1 ms a megabyte.

        Raises DamagedError if the shard is missing or truncated or holds something else at this place, and StorageError
        if a store keeps failing.
        """
        try:
            return self._members(dataset, clip_id, place, check)
        except DamagedError:
            # Only the cached copy may be damaged.
            if self._cache is None or not self._cache.drop(self._cache_name(dataset, place)):
                raise
            return self._members(dataset, clip_id, place, check)

    def _members(self, dataset: str, clip_id: str, place: Place, check: bool) -> dict[str, memoryview]:
        members: dict[str, memoryview] = {}
        try:
            data = self._bytes(dataset, place)
            if check and place.crc32 is not None and zlib.crc32(data) != place.crc32:
                raise DamagedError("the shard is damaged: its checksum does not match")
            for path, content in iterate_members(data):
                key, _, name = path.partition(".")
                if key != clip_id or name in members:
                    raise DamagedError(f"{path!r} is in its place")
                members[name] = content
        except FileNotFoundError as error:
            root = self._folders[dataset].local
            if root is not None and not root.is_dir():
                # An unmounted disk is not damage: its clips must not be left out one by one.
                raise RunError(
                    f"the dataset {dataset} is not there: mount it, or `mix` again with its new path"
                ) from error
            raise DamagedError("the shard is gone") from error
        except IsADirectoryError as error:
            raise DamagedError("a folder is in the shard's place") from error
        except tarfile.TarError as error:
            raise DamagedError(f"the shard is damaged: {error}") from error
        return members

    def _bytes(self, dataset: str, place: Place) -> memoryview:
        if dataset not in self._folders:
            self._folders[dataset] = Folder(dataset)
        folder = self._folders[dataset]
        if not _is_plain(place.shard):
            raise DamagedError(f"{place.shard!r} is not a valid shard name")
        if folder.local is None:
            data = memoryview(self._fetch(folder, dataset, place))
        else:
            mapping = self._map(folder.local, dataset, place.shard)
            data = memoryview(mapping or b"")[place.offset : place.offset + place.size]
        if len(data) < place.size:
            raise DamagedError(f"the shard is cut short: {len(data)} of {place.size} bytes are there")
        return data

    def _fetch(self, folder: Folder, dataset: str, place: Place) -> bytes:
        def read() -> bytes:
            return folder.read(place.shard, place.offset, place.size)

        if self._cache is None:
            return read()
        return self._cache.get(self._cache_name(dataset, place), place.size, read)

    def _cache_name(self, dataset: str, place: Place) -> str:
        return f"{dataset}/{place.shard} {place.offset}"

    def _map(self, root: Path, dataset: str, shard: str) -> mmap.mmap | None:
        """A mapped shard; None if it is empty."""
        key = dataset, shard
        mapping = self._maps.get(key)
        # Reading a mapping beyond a file that has shrunk would kill the process, so it is mapped again.
        if mapping is not None and mapping.size() == len(mapping):
            self._maps.move_to_end(key)
            return mapping
        with (root / shard).open("rb") as file:
            empty = not file.seek(0, os.SEEK_END)
            new_mapping = None if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._maps[key] = new_mapping
        if len(self._maps) > _MAPS:
            # Unmapped when its last view is gone.
            self._maps.popitem(last=False)
        return new_mapping


def _is_plain(shard: str) -> bool:
    """Whether a path stays within its dataset."""
    parts_of = shard.split("/")
    return bool(shard) and not shard.startswith("/") and ".." not in parts_of and "" not in parts_of
