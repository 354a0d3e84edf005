"""One writer per OUT on a disk: a lock that the kernel releases when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import RunError
from pipeline.storage.folder import Folder

_LOG = logging.getLogger("vdot_data")


@contextmanager
def hold_lock(out: Folder) -> Iterator[Folder]:
    """Hold the lock of a local OUT, so that a second run is refused at once (elsewhere its next commit fails).

    The kernel releases the lock when its holder dies. Raises `RunError` when another run holds it. A file system
    without locks (some NFS and Lustre mounts) gets a warning.
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
        except OSError as error:
            _LOG.warning("%s has no locks (%s): make sure that no other run writes to it", out.url, error.strerror)
        yield out
