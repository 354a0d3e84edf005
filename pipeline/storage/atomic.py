"""Atomic writes to a local disk: a file or folder appears whole or not at all, whenever the process is killed.

What `write_file` and `complete_file` write also survives a power cut. `new_file` and `new_folder` do not wait for the
disk: they are for what a library writes, and for what can be made again.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import RunError

# How often a file is written before its writer gives up, because something deletes it unfinished.
_ATTEMPTS = 3


def is_temporary(name: str) -> bool:
    """Whether this is the name of an unfinished file."""
    return name.startswith(".vdot-") and name.endswith(".tmp")


def temporary_name() -> str:
    """A new name that `is_temporary` recognises."""
    return f".vdot-{secrets.token_hex(8)}.tmp"


@contextmanager
def complete_file(target: Path, data: bytes | Path) -> Iterator[Path]:
    """A file with all of `data` next to `target`, for the body to rename or link; removed if it does neither.

    When the block ends, the bytes and the new name are on the disk.
    """
    _make_folder(target.parent)
    temporary = target.with_name(temporary_name())
    try:
        with temporary.open("xb") as file:
            if isinstance(data, Path):
                with data.open("rb") as source:
                    shutil.copyfileobj(source, file, 4 * 2**20)
            else:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
        _sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_file(target: Path, data: bytes | Path) -> None:
    """Write all of `data` into a file, over an older one if there is one. When it returns, it is on the disk.

    Starts again where a clean-up deletes the unfinished file (`catalog.cleanup`); raises FileNotFoundError at the
    third time.
    """
    for remaining in reversed(range(_ATTEMPTS)):
        with complete_file(target, data) as temporary:
            try:
                temporary.replace(target)
                return
            except FileNotFoundError:
                if not remaining:
                    raise


@contextmanager
def new_file(target: Path, unfinished: Path | None = None) -> Iterator[Path]:
    """A path next to `target` for the body to write to: renamed to `target` when the block ends, and removed if it
    raises.

    `unfinished`: that path; by default one that nobody else uses, so that any number of processes may write `target`.
    """
    temporary = unfinished or target.with_name(temporary_name())
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """An empty folder next to `target`, for one process to fill: renamed to `target`, which must not exist, when the
    block ends, and removed if it raises."""
    unfinished = begin_folder(target)
    try:
        yield unfinished
        unfinished.rename(target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def begin_folder(target: Path) -> Path:
    """Make `unfinished_path(target)` an empty folder, whatever a killed process left there; several processes may fill
    it before one of them renames it to `target`."""
    unfinished = unfinished_path(target)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    return unfinished


def unfinished_path(target: Path) -> Path:
    """Where a file or folder with a single writer is until it is complete: always at the same place, so that the next
    writer replaces what a killed one left."""
    return target.with_name(f".{target.name}.half")


def remove_folder(folder: Path) -> None:
    """Remove a folder and all in it. It loses its name first: nobody sees a part of it."""
    shutil.rmtree(folder.rename(unfinished_path(folder)), ignore_errors=True)


def link_new(temporary: Path, target: Path) -> bool:
    """Give a complete file its name; False if the name is taken. Raises RunError where links do not exist."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP):
            raise RunError(
                f"{target.parent} is on a file system without hard links, which the catalog needs: "
                "choose another folder or an object store"
            ) from error
        raise
    return True


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Flush a folder: a new name survives a power cut only when its folder is on the disk too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
