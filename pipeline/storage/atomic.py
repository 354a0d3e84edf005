"""Atomic writes to a local disk: a file appears whole or not at all, and survives a power cut."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import RunError


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
