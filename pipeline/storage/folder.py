"""Folders on a disk or in an object store, read and written whole even over a bad network."""

from __future__ import annotations

import errno
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec.config
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import RunError, UsageError
from pipeline.storage.atomic import complete_file, is_temporary, link_new, new_file, temporary_name, write_file
from pipeline.storage.object_store import (
    CREATES_IF_ABSENT,
    FULL,
    describe_error,
    filesystem,
    protocols,
    retry,
    s3_error_code,
)

LARGEST_PUT = 5 * 2**30 - 1  # bytes: the limit of S3 for one PUT


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a folder: its name in it, its size in bytes, its last change in seconds since 1970."""

    name: str
    size: int
    modified: float


class Folder:
    """A folder on a disk or in an object store; pickles with the driver's fsspec configuration.

    Names are relative to the folder, with `/` between their parts. Every call on a store is retried;
    StorageError is raised when it keeps failing.
    """

    def __init__(self, url: str) -> None:
        """Raises UsageError for a protocol that is unknown or whose package is not installed."""
        self._open(url)

    def _open(self, url: str) -> None:
        if not url.strip():
            raise UsageError("the name of the dataset's folder is empty")
        try:
            self._fs, root = filesystem(url)
        except OSError as error:
            raise UsageError(f"{url} cannot be reached: {describe_error(error)}") from error
        self._root = root.rstrip("/") or "/"
        self.local: Path | None = Path(self._root) if isinstance(self._fs, LocalFileSystem) else None
        self.url = str(self.local or self._fs.unstrip_protocol(self._root))
        if self.local is not None and self.local.exists() and not self.local.is_dir():
            raise UsageError(f"{url} is a file; a dataset is a folder")

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    def __getstate__(self) -> dict[str, Any]:
        conf = {name: dict(options) for name, options in fsspec.config.conf.items()}
        return {"url": self.url, "conf": conf}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A worker on another node has neither the driver's environment nor its ~/.config/fsspec.
        for name, options in state["conf"].items():
            fsspec.config.conf.setdefault(name, {}).update(options)
        self._open(state["url"])

    def _path(self, rel: str) -> str:
        return f"{self._root.rstrip('/')}/{rel}".rstrip("/") or "/"

    def put(self, rel: str, data: bytes | Path) -> None:
        """Write an object, over an older one if there is one; readers see all of it or nothing.

        Raises RunError where the folder cannot be written to: no permission, no such bucket, full disk.
        """
        if isinstance(data, Path):
            data.stat()  # a missing file is the caller's mistake, not the folder's
        with self._explain_write_errors():
            if self.local is not None:
                write_file(self.local / rel, data)
            elif isinstance(data, Path):
                retry(f"writing {self.url}/{rel}", lambda: self._upload(rel, data))
            else:
                retry(f"writing {self.url}/{rel}", lambda: self._pipe(rel, data))

    def create(self, rel: str, data: bytes) -> bool:
        """Write an object unless it exists: of several writers, only one succeeds.

        False if it exists with other bytes. True if it was written or holds exactly these bytes, which is
        what a retry finds after a request whose answer was lost. Raises RunError as `put` does, and for a store
        without an atomic create.
        """
        with self._explain_write_errors():
            if self.local is not None:
                with complete_file(self.local / rel, data) as temporary:
                    return link_new(temporary, self.local / rel) or (self.local / rel).read_bytes() == data
            self.check_creates()
            if retry(f"creating {self.url}/{rel}", lambda: self._pipe_new(rel, data)):
                return True
            return self.read(rel) == data

    def check_creates(self) -> None:
        """Raises RunError for a store without an atomic create, on which no dataset can be written."""
        if self.local is None and not protocols(self._fs) & CREATES_IF_ABSENT:
            raise RunError(
                f"{self.url}: this kind of storage has no atomic create, without which two runs could "
                "write the same catalog; use a local folder, s3:// or gs://"
            )

    def read(self, rel: str, start: int = 0, length: int | None = None) -> bytes:
        """`length` bytes from offset `start`, fewer where the object ends. Raises FileNotFoundError."""
        if length == 0:
            return b""
        if self.local is not None:
            with (self.local / rel).open("rb") as file:
                file.seek(start)
                return file.read(-1 if length is None else length)

        def read_range() -> bytes:
            try:
                data: bytes = self._fs.cat_file(self._path(rel), start=start or None, end=length and start + length)
            except OSError as error:
                if s3_error_code(error) in ("InvalidRange", "416"):
                    return b""
                raise
            return data

        return retry(f"reading {self.url}/{rel}", read_range)

    def list_files(self, rel: str = "", *, temporary: bool = False) -> list[Entry]:
        """The objects directly in a folder, sorted by name, as they are now; none if there is no such folder.

        Leaves out folders. With `temporary`, lists only unfinished files, which are otherwise left out.
        """
        path = self._path(rel)

        def list_folder() -> list[Entry]:
            try:
                infos = self._fs.ls(path, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
            except PermissionError as error:
                raise RunError(f"{self.url}/{rel} cannot be read: permission denied") from error
            if any(info["type"] == "file" and info["size"] is None for info in infos):
                raise UsageError(
                    f"{self.url} is on a web server, which lists no sizes: datasets are read from a disk or a bucket"
                )
            return [_entry_from(info) for info in infos if info["type"] == "file" and _parent_of(info["name"]) == path]

        entries = retry(f"listing {self.url}/{rel}", list_folder)
        return sorted(
            (entry for entry in entries if is_temporary(entry.name) == temporary), key=lambda entry: entry.name
        )

    def exists(self, rel: str) -> bool:
        """Whether there is an object of this name."""

        def check_file() -> bool:
            try:
                return bool(self._fs.info(self._path(rel))["type"] == "file")
            except FileNotFoundError:
                return False

        return retry(f"looking for {self.url}/{rel}", check_file)

    def delete(self, rel: str) -> None:
        """Remove an object; it is not an error if it does not exist."""

        def remove() -> None:
            try:
                self._fs.rm_file(self._path(rel))
            except FileNotFoundError:
                return

        retry(f"deleting {self.url}/{rel}", remove)

    def download(self, rel: str, target: Path) -> None:
        """Copy an object into the local file `target`, whole or not at all. Raises FileNotFoundError."""
        with new_file(target) as temporary:
            retry(f"reading {self.url}/{rel}", lambda: self._fs.get_file(self._path(rel), str(temporary)))

    def check_writable(self) -> None:
        """Write and remove a small object. Raises RunError with one sentence if that cannot be done."""
        self.check_creates()
        probe = temporary_name()
        try:
            with self._explain_write_errors():
                self.put(probe, bytes(4096))
                self.delete(probe)
        except OSError as error:
            raise RunError(f"{self.url} cannot be written to: {describe_error(error)}") from error

    def _pipe(self, rel: str, data: bytes, **options: str) -> None:
        if "s3" in protocols(self._fs) and len(data) <= LARGEST_PUT:
            # s3fs splits anything larger than two chunks into parts, and a retry cannot know how far they got.
            self._fs.pipe_file(self._path(rel), data, chunksize=len(data) + 1, **options)
        else:
            self._fs.pipe_file(self._path(rel), data, **options)

    def _pipe_new(self, rel: str, data: bytes) -> bool:
        """One conditional PUT; False if the store says that the object exists."""
        try:
            self._pipe(rel, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            # Stores other than AWS do not say which condition failed, so s3fs takes it for a different error.
            if s3_error_code(error) in ("PreconditionFailed", "412"):
                return False
            raise
        return True

    def _upload(self, rel: str, file: Path) -> None:
        try:
            self._fs.put_file(str(file), self._path(rel))
        except FileNotFoundError as error:
            # The last call of a multipart upload, repeated after a lost answer, finds no such upload.
            if s3_error_code(error) == "NoSuchUpload":
                raise OSError(errno.EBUSY, f"the upload of {rel} must start again") from error
            raise

    @contextmanager
    def _explain_write_errors(self) -> Iterator[None]:
        """Turns an error that no retry and no other clip can fix into the sentence that ends the run."""
        try:
            yield
        except FileNotFoundError as error:
            raise RunError(f"{self.url} does not exist and cannot be made: {error}") from error
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise RunError(f"{self.url} cannot be written to: {describe_error(error)}") from error
        except OSError as error:
            if error.errno in FULL:
                raise RunError(f"no space left on the disk of {self.url}") from error
            if error.errno == errno.EROFS:
                raise RunError(f"{self.url} is on a read-only file system") from error
            raise


def parquet(table: pa.Table, **options: Any) -> bytes:
    """A table as the bytes of a Parquet file; `options` are those of `pyarrow.parquet.write_table`."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", **options)
    return buffer.getvalue()


def _parent_of(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def _entry_from(info: dict[str, Any]) -> Entry:
    changed = next((info[key] for key in ("LastModified", "mtime", "updated", "created") if info.get(key)), None)
    if isinstance(changed, str):
        changed = datetime.fromisoformat(changed)
    if isinstance(changed, datetime):
        changed = changed.timestamp()
    # A store that does not say: now, so that nobody sweeps a file that may be in use.
    modified = time.time() if changed is None else float(changed)
    return Entry(info["name"].rpartition("/")[2], int(info["size"]), modified)
