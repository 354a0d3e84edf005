"""The members of a clip from the shards of a dataset: mapped where they lie on a disk, one ranged read elsewhere."""

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

# Shards that are kept mapped; each keeps a descriptor.
_MAPS = 128


class Place(NamedTuple):
    """Where a layer of a clip lies: `size` bytes from `offset` on in `shard`, which is relative to the dataset, and the
    CRC-32 of these bytes, if it is known."""

    layer: str
    shard: str
    offset: int
    size: int
    crc32: int | None


class DamagedError(Exception):
    """A clip's bytes are gone or not what they should be; others can still be read."""


class Reader:
    """Reads from any number of datasets. Not for several threads."""

    def __init__(self, cache: Cache | None = None) -> None:
        """`cache` keeps what comes from datasets that are not on a disk."""
        self._cache = cache
        self._folders: dict[str, Folder] = {}
        self._maps: OrderedDict[tuple[str, str], mmap.mmap | None] = OrderedDict()

    def members(self, dataset: str, clip_id: str, place: Place, *, check: bool) -> dict[str, memoryview]:
        """The members of one layer of a clip, by their names after the clip id. Nothing on a disk is copied: the views
        are of the mapped shard, and are read-only. `check`: hold them against their CRC-32, at 1 ms a megabyte.

        Raises DamagedError for a shard that is gone or cut short and for a place that holds something else, and
        StorageError where a store keeps failing.
        """
        try:
            return self._members(dataset, clip_id, place, check)
        except DamagedError:
            # It may be the copy in the cache that is damaged.
            if self._cache is None or not self._cache.drop(self._name(dataset, place)):
                raise
            return self._members(dataset, clip_id, place, check)

    def _members(self, dataset: str, clip_id: str, place: Place, check: bool) -> dict[str, memoryview]:
        found: dict[str, memoryview] = {}
        try:
            data = self._bytes(dataset, place)
            if check and place.crc32 is not None and zlib.crc32(data) != place.crc32:
                raise DamagedError("the shard is damaged: its bytes there are not those that were written")
            for path, content in iterate_members(data):
                key, _, name = path.partition(".")
                if key != clip_id or name in found:
                    raise DamagedError(f"{path!r} lies in its place")
                found[name] = content
        except FileNotFoundError as error:
            root = self._folders[dataset].local
            if root is not None and not root.is_dir():
                # A disk that is not mounted is no damage, and must not be left out clip by clip.
                raise RunError(f"the dataset {dataset} is not there: mount it, or `mix` again where it is") from error
            raise DamagedError("the shard is gone") from error
        except IsADirectoryError as error:
            raise DamagedError("a folder lies in the shard's place") from error
        except tarfile.TarError as error:
            raise DamagedError(f"the shard is damaged: {error}") from error
        return found

    def _bytes(self, dataset: str, place: Place) -> memoryview:
        if dataset not in self._folders:
            self._folders[dataset] = Folder(dataset)
        folder = self._folders[dataset]
        if not _plain(place.shard):
            raise DamagedError(f"{place.shard!r} is no name of a shard")
        if folder.local is None:
            data = memoryview(self._fetched(folder, dataset, place))
        else:
            mapped = self._mapped(folder.local, dataset, place.shard)
            data = memoryview(mapped or b"")[place.offset : place.offset + place.size]
        if len(data) < place.size:
            raise DamagedError(f"the shard is cut short: {len(data)} of {place.size} bytes are there")
        return data

    def _fetched(self, folder: Folder, dataset: str, place: Place) -> bytes:
        def read() -> bytes:
            return folder.read(place.shard, place.offset, place.size)

        if self._cache is None:
            return read()
        return self._cache.get(self._name(dataset, place), place.size, read)

    def _name(self, dataset: str, place: Place) -> str:
        return f"{dataset}/{place.shard} {place.offset}"

    def _mapped(self, root: Path, dataset: str, shard: str) -> mmap.mmap | None:
        """A shard in memory; None: it is empty."""
        key = dataset, shard
        known = self._maps.get(key)
        # A file that shrank since would end the process where it is read: it is mapped anew, as a new process would.
        if known is not None and known.size() == len(known):
            self._maps.move_to_end(key)
            return known
        with (root / shard).open("rb") as file:
            empty = not file.seek(0, os.SEEK_END)
            mapped = None if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._maps[key] = mapped
        if len(self._maps) > _MAPS:
            # Unmapped when the last view of it is gone.
            self._maps.popitem(last=False)
        return mapped


def _plain(shard: str) -> bool:
    """Whether a name stays within its dataset."""
    parts_of = shard.split("/")
    return bool(shard) and not shard.startswith("/") and ".." not in parts_of and "" not in parts_of
