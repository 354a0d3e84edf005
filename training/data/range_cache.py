"""A bounded folder of what was read from an object store, so that later passes read it from a local disk.

Files get their names when they are whole, and one that a killed process left unfinished goes like others that nobody
asks for: there is nothing to clean up. Any number of processes may share a folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pipeline.errors import RunError
from pipeline.storage.object_store import FULL

_SUFFIX = ".part-of-shard"
# The folder is looked through again after so much of its bound was added; it can be over the bound by that much for
# each process.
_SHARE = 256


class Cache:
    """Byte ranges by name; the ones not asked for longest go first."""

    def __init__(self, folder: str, limit: int) -> None:
        """`limit` in bytes. The folder is made if need be; files of other programs in it are left alone."""
        self._folder, self._limit = Path(folder), limit
        self._folder.mkdir(parents=True, exist_ok=True)
        self._added = limit

    def get(self, name: str, size: int, make: Callable[[], bytes]) -> bytes:
        """The `size` bytes kept under a name, or else what `make` gives, which is kept unless the disk is full."""
        path = self._path(name)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            data = b""
        except OSError as error:
            raise RunError(f"the cache {self._folder} cannot be used: {error}") from error
        # A file may be shorter after the machine lost its power.
        if len(data) == size:
            # Of a file of somebody else's, who shares the folder, the time stays as it is.
            with suppress(OSError):
                os.utime(path)
            return data
        data = make()
        if len(data) == size <= self._limit:
            self._make_room(len(data))
            try:
                self._keep(path, data)
            except OSError as error:
                if error.errno not in FULL:
                    raise RunError(f"the cache {self._folder} cannot be used: {error}") from error
        return data

    def drop(self, name: str) -> bool:
        """Forget what is kept under a name; False if nothing is."""
        try:
            self._path(name).unlink()
        except FileNotFoundError:
            return False
        return True

    def _path(self, name: str) -> Path:
        return self._folder / (hashlib.sha256(name.encode()).hexdigest()[:40] + _SUFFIX)

    def _keep(self, path: Path, data: bytes) -> None:
        unfinished = path.with_name(f"{os.getpid()}-{path.name}")
        try:
            unfinished.write_bytes(data)
            unfinished.replace(path)
        except FileNotFoundError:
            # Another process made room; what it took for old was new.
            return
        finally:
            unfinished.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        self._added += size
        if self._added < self._limit // _SHARE:
            return
        self._added = 0
        kept = []
        for entry in os.scandir(self._folder):
            if entry.name.endswith(_SUFFIX):
                try:
                    kept.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
                except FileNotFoundError:
                    # Another process made room.
                    continue
        over = sum(length for _, length, _ in kept) + size - self._limit
        for _, length, path in sorted(kept):
            if over <= 0:
                break
            Path(path).unlink(missing_ok=True)
            over -= length
