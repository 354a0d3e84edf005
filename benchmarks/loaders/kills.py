"""What a loader leaves behind when its job is killed, and whether a restart hands out the samples in the same order."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.loaders.job import INDEX_BYTES, Job, JobError, end, indices, last_words, run, start

_SHARED = "/dev/shm/"  # noqa: S108
# Workers look every five seconds whether their parent is there: later than that they ought to be gone.
WAIT_S = 5.0
_LIMIT_S = 120.0


def study(job: Job, scratch: Path) -> dict[str, Any]:
    """SIGKILL the main process of `job` at its sample `at`, look around after `WAIT_S`, and start it again.

    The restart meets what the kill left, as it would where a scheduler restarts a job at once. At the end what
    outlived both is killed, and the files that the killed processes had in shared memory are deleted.
    """
    seen = Path(job.file)
    processes, shared = _kill(job, seen, scratch)
    time.sleep(WAIT_S)
    left = _files(scratch)
    found: dict[str, Any] = {
        "at": job.at,
        "workers": len(processes),
        "alive_after_5_s": len(_alive(processes)),
        "shared_memory_left": sorted(path.name for path in shared if path.exists()),
        "temporary_files_left": sorted(left),
    }
    before = list(indices(seen))
    try:
        again = run(replace(job, task="order", at=len(before), file=""), scratch, _LIMIT_S)
        found["restart"] = {
            "same_order": again["order"] == before,
            "first_sample_s": round(again["first_s"], 3),
            "reason": None,
            # This one ended by itself: what it leaves, it always leaves.
            "temporary_files_added": sorted(_files(scratch) - left),
        }
    except JobError as error:
        found["restart"] = {"same_order": None, "first_sample_s": None, "reason": str(error)}
    finally:
        found["alive_after_restart"] = len(_alive(processes))
        for process in _alive(processes):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for path in shared:
            path.unlink(missing_ok=True)
    return found


def _kill(job: Job, seen: Path, scratch: Path) -> tuple[list[psutil.Process], set[Path]]:
    """Start a job, and SIGKILL its main process; returns its workers and their files in shared memory."""
    main = start(job, scratch)
    deadline = time.monotonic() + _LIMIT_S
    while not seen.exists() or seen.stat().st_size < INDEX_BYTES * job.at:
        # A job that ends by itself, or hangs, was not killed in the middle.
        if main.poll() is not None or time.monotonic() > deadline:
            end(main)
            raise JobError(f"it did not reach sample {job.at}, where it was to be killed: {last_words(scratch)}")
        time.sleep(0.005)
    processes = [process for process in psutil.Process(main.pid).children(recursive=True) if not _tracker(process)]
    shared = set().union(*(_shared(pid) for pid in [main.pid, *(process.pid for process in processes)]))
    os.kill(main.pid, signal.SIGKILL)
    main.wait()
    return processes, shared


def _tracker(process: psutil.Process) -> bool:
    """Whether it is Python's keeper of semaphores, which ends when the last worker has."""
    try:
        return "multiprocessing.resource_tracker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return True


def _alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; nobody may be there to collect a dead one, so that is looked at too."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _files(scratch: Path) -> set[str]:
    return {str(path.relative_to(scratch)) for path in scratch.rglob("*")}


def _shared(pid: int) -> set[Path]:
    """The files in shared memory that a process has mapped: all that lies there may be another program's."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        return {Path(_SHARED + line.split(_SHARED)[1]) for line in lines if _SHARED in line and "(deleted)" not in line}
    return set()
