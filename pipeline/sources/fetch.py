"""Fetches a source as one local file, read once over the network and hashed on the way."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import ClipError, ErrorCode, UsageError
from pipeline.sources.expand import Source
from pipeline.storage.object_store import ATTEMPTS, KEYED, WEB, AnswerError, StorageError, filesystem, retry, stamp_of

CHUNK = 4 * 2**20  # bytes
READ_AHEAD = 16 * 2**20  # bytes: one request to an object store


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A source as a local file: the original if it is local, else a file of its own in the scratch folder.

    `size` in bytes; `stamp` as in `Source`, of exactly the bytes that were hashed; `copied`: it is not the original.
    """

    path: Path
    sha256: str
    size: int
    stamp: str | None
    copied: bool

    def discard(self) -> None:
        """Remove a copy; the user's own file stays."""
        if self.copied:
            self.path.unlink(missing_ok=True)

    def check_unchanged(self) -> None:
        """Raises ClipError (SOURCE_UNREADABLE) when the user's own file is no longer what was hashed."""
        if self.copied:
            return
        try:
            status = self.path.stat()
        except OSError as error:
            raise ClipError(
                ErrorCode.SOURCE_UNREADABLE, f"{self.path} disappeared while it was read: {error}"
            ) from error
        if (status.st_size, str(status.st_mtime_ns)) != (self.size, self.stamp):
            raise ClipError(ErrorCode.SOURCE_UNREADABLE, f"{self.path} changed while it was read")


def fetch_source(source: Source, scratch: Path) -> LocalFile:
    """The bytes of a source as a file, which the caller discards.

    Raises ClipError: SOURCE_UNREADABLE, SOURCE_EMPTY, or STORAGE_ERROR when the network keeps failing;
    RunError when the scratch disk is full.
    """
    fetched = _fetch(source, scratch)
    if fetched.size == 0:
        fetched.discard()
        raise ClipError(ErrorCode.SOURCE_EMPTY, f"{source.uri} has no bytes")
    return fetched


def _fetch(source: Source, scratch: Path) -> LocalFile:
    if source.content is None and "://" not in source.uri:
        return _hash_local_file(Path(source.uri))
    if source.uri.endswith("/") and source.uri.partition("://")[0] not in WEB:
        detail = "a name that ends in a slash is a folder's; copy the object to another name"
        raise ClipError(ErrorCode.SOURCE_UNREADABLE, f"{source.uri}: {detail}")
    path = scratch / secrets.token_hex(8)
    complete = False
    try:
        with path.open("wb") as file:
            download = _Download(source, file)
            while retry(f"reading {source.uri}", download.step):
                pass
        complete = True
    except FileNotFoundError as error:
        detail = "no such object" if source.uri.partition("://")[0] in KEYED else str(error)
        raise ClipError(ErrorCode.SOURCE_UNREADABLE, f"{source.uri}: {detail}{_suggest_fix(source.uri)}") from error
    except (AnswerError, PermissionError, IsADirectoryError, UsageError, ValueError) as error:
        raise ClipError(ErrorCode.SOURCE_UNREADABLE, f"{source.uri}: {error}") from error
    except StorageError as error:
        raise ClipError(ErrorCode.STORAGE_ERROR, f"{error}{_suggest_fix(source.uri)}") from error
    finally:
        if not complete:
            path.unlink()
    return LocalFile(path, download.hash.hexdigest(), download.offset, download.stamp, copied=True)


def _suggest_fix(uri: str) -> str:
    if uri.startswith("s3://") and "?versionId=" in uri:
        return "; if ?versionId= is part of the key and names no version, copy the object to another name"
    return ""


def _hash_local_file(path: Path) -> LocalFile:
    try:
        file = open(path, "rb", opener=_opener)  # noqa: SIM115
    except (OSError, ValueError) as error:
        # As `expand` writes bytes that are not text.
        hint = " (its name is not UTF-8: rename it)" if re.search(r"\\x[0-9a-f]{2}", str(path)) else ""
        raise ClipError(ErrorCode.SOURCE_UNREADABLE, f"{path}: {error}{hint}") from error
    with file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ClipError(ErrorCode.SOURCE_UNREADABLE, f"{path} is not a regular file")
        try:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ClipError(ErrorCode.STORAGE_ERROR, f"{path}: {error}") from error
    fetched = LocalFile(path, digest, status.st_size, str(status.st_mtime_ns), copied=False)
    fetched.check_unchanged()
    return fetched


def _opener(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a FIFO waits forever for its writer.
    return os.open(path, flags | os.O_NONBLOCK)


class _Download:
    """A download to disk, chunk by chunk; after an error the same step can be retried."""

    def __init__(self, source: Source, file: BinaryIO) -> None:
        self.offset = 0
        self.hash = hashlib.sha256()
        self.stamp = source.stamp
        self._source, self._file = source, file
        self._stream: Any = None if source.content is None else BytesIO(source.content)
        self._size: int | None = None
        self._read_ahead = READ_AHEAD
        self._restarts = 0

    def step(self) -> bool:
        """Copy one chunk; False at the end."""
        # Only a successful read keeps the stream: the step after an error opens a new one.
        stream, self._stream = self._stream or self._open(), None
        try:
            chunk = stream.read(CHUNK)
        except ValueError as error:
            if self._read_ahead == 0:
                raise
            self._read_ahead = 0
            raise OSError(errno.EBUSY, f"the server does not send parts of a file: {error}") from error
        if not chunk and self._size is not None and self.offset < self._size:
            raise OSError(errno.EIO, f"the answer ended after {self.offset} of {self._size} bytes")
        self._file.write(chunk)
        self.hash.update(chunk)
        self.offset += len(chunk)
        self._stream = stream
        return bool(chunk)

    def _open(self) -> Any:
        fs, path = filesystem(self._source.uri)
        stream = fs.open(path, "rb", block_size=self._read_ahead)
        details = stream.details
        if details.get("type") == "directory":
            raise IsADirectoryError(errno.EISDIR, "is a folder")
        self._size, stamp = stream.size, stamp_of(details)
        if self.offset and self._size is not None and stamp == self.stamp:
            stream.seek(self.offset)
        elif self.offset:
            self._restart()
        self.stamp = stamp
        return stream

    def _restart(self) -> None:
        """Start over: the object has changed, or comes as a stream that cannot be resumed."""
        self._restarts += 1
        if self._restarts == ATTEMPTS:
            raise StorageError(f"reading {self._source.uri} broke off or changed {ATTEMPTS} times")
        self._file.seek(0)
        self._file.truncate()
        self.offset, self.hash = 0, hashlib.sha256()
