"""One writer per OUT on a disk: a lock that the kernel gives back when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.catalog import Catalog
from pipeline.errors import RunError
from pipeline.storage import Folder
from pipeline.sweep import check_complete


@contextmanager
def alone(out: Folder) -> Iterator[Folder]:
    """Hold the lock of a local OUT, so that a second run is refused at once (elsewhere the next commit tells).

    The kernel gives the lock back when its holder dies. Raises `RunError` when another run holds it.
    """
    if out.local is None:
        yield out
        return
    try:
        lock = (out.local / ".lock").open("w")
    except OSError as error:
        raise RunError(f"{out.url} cannot be written to: {error.strerror}") from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"another run is writing to {out.url}; wait for it, or stop it first.") from error
        yield out


@contextmanager
def owned(out: Folder, scratch: Path) -> Iterator[Catalog]:
    """The catalog of an OUT that is the caller's alone. Raises `RunError` as `alone`, and when the catalog has gaps."""
    with alone(out):
        catalog = Catalog(out, scratch)
        check_complete(catalog)
        yield catalog
