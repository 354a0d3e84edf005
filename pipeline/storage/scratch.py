"""Folders for temporary files, removed even when their process was killed."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import tempfile
from pathlib import Path


class Scratch:
    """A folder at `path` for the temporary files of one process; removed by `close`, or when the next one starts.

    It is in $VDOT_SCRATCH, or else in the system's folder for temporary files.
    """

    def __init__(self) -> None:
        root = Path(os.environ.get("VDOT_SCRATCH") or tempfile.gettempdir())
        root.mkdir(parents=True, exist_ok=True)
        for sibling in root.glob("vdot-*-*"):
            _remove_if_orphan(sibling)
        self.path = root / f"vdot-{os.getpid()}-{secrets.token_hex(4)}"
        self.path.mkdir(mode=0o700)
        # The kernel releases the lock when the process ends, however it ends. Unlike the process id in the name,
        # it also works for a process in another container that shares the disk.
        self._lock = os.open(self.path, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        """Remove the folder and what is in it. May be called twice."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _remove_if_orphan(folder: Path) -> None:
    """Remove the scratch folder of a process that was killed; leave any other, and those of other users."""
    match = re.fullmatch(r"vdot-(\d+)-[0-9a-f]{8}", folder.name)
    if match is None or _is_alive(int(match[1])):
        return
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return
    finally:
        os.close(handle)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
