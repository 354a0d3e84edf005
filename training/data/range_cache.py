"""A size-bounded local cache of byte ranges from an object store, so that later passes read from a local disk.

Files are renamed when they are complete, and unfinished ones of killed processes are evicted like others that are not
used: nothing needs clean-up. Any number of processes may share a folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pipeline.errors import RunError
from pipeline.storage.atomic import is_temporary, new_file
from pipeline.storage.object_store import FULL

_SUFFIX = ".part-of-shard"
# The folder is scanned again after this share of its bound was added; each process may exceed the bound by as much.
_SHARE = 256


class Cache:
    """Byte ranges by name; the least recently used are evicted first."""

    def __init__(self, folder: str, limit: int) -> None:
        """`limit` in bytes. The folder is created if needed; files of other programs in it are left alone."""
        self._folder, self._limit = Path(folder), limit
        self._folder.mkdir(parents=True, exist_ok=True)
        self._added = limit

    def get(self, name: str, size: int, make: Callable[[], bytes]) -> bytes:
        """The `size` bytes cached under a name, or the result of `make`, which is cached unless the disk is full."""
        path = self._path(name)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            data = b""
        except OSError as error:
            raise RunError(f"the cache {self._folder} cannot be used: {error}") from error
        # After a power loss a file may be shorter.
        if len(data) == size:
            # Fails for a file of another user who shares the folder; its time then stays unchanged.
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
        """Remove the bytes cached under a name; False if there are none."""
        try:
            self._path(name).unlink()
        except FileNotFoundError:
            return False
        return True

    def _path(self, name: str) -> Path:
        return self._folder / (hashlib.sha256(name.encode()).hexdigest()[:40] + _SUFFIX)

    def _keep(self, path: Path, data: bytes) -> None:
        # Another process may evict the unfinished file.
        with suppress(FileNotFoundError), new_file(path) as unfinished:
            unfinished.write_bytes(data)

    def _make_room(self, size: int) -> None:
        self._added += size
        if self._added < self._limit // _SHARE:
            return
        self._added = 0
        files = []
        for entry in os.scandir(self._folder):
            if entry.name.endswith(_SUFFIX) or is_temporary(entry.name):
                try:
                    files.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
                except FileNotFoundError:
                    # Another process made room.
                    continue
        excess = sum(length for _, length, _ in files) + size - self._limit
        for _, length, path in sorted(files):
            if excess <= 0:
                break
            Path(path).unlink(missing_ok=True)
            excess -= length
