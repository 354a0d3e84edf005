"""Finds and waits for other processes, any of which may end meanwhile."""

from __future__ import annotations

from contextlib import suppress

import psutil

PATIENCE_S = 60
"""Seconds that a test waits for what should take a moment: only a hang lasts longer, even on a busy machine."""


def children(process: int, word: str, *, recursive: bool = False) -> list[psutil.Process]:
    """The running children of a process with `word` in their command line; none if the process has ended."""
    alive = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process).children(recursive=recursive):
            # Also raised, as ZombieProcess, for a child that has ended without being waited for.
            with suppress(psutil.NoSuchProcess):
                if word in " ".join(child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE:
                    alive.append(child)
    return alive


def remaining(processes: list[psutil.Process]) -> list[psutil.Process]:
    """The processes that still run after `PATIENCE_S`."""
    alive: list[psutil.Process] = psutil.wait_procs(processes, timeout=PATIENCE_S)[1]
    return alive
