"""Studies what a loader leaves behind when its job is killed, and whether a restart yields the same order."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.loaders.job import (
    INDEX_BYTES,
    Job,
    JobError,
    kill_group,
    read_indices,
    read_last_line,
    run_job,
    start_job,
)

_SHARED = "/dev/shm/"  # noqa: S108
# Workers check every five seconds whether their parent is alive: after that they should have ended.
WAIT_S = 5.0
_LIMIT_S = 120.0


def study_kill(job: Job, scratch: Path) -> dict[str, Any]:
    """SIGKILL the main process of `job` at its sample `at`, check for leftovers after `WAIT_S`, and restart it.

    The restart sees what the kill left, as if a scheduler restarted the job at once. At the end, surviving processes
    are killed, and the files that the killed processes had in shared memory are deleted.
    """
    index_file = Path(job.file)
    processes, shared_files = _kill(job, index_file, scratch)
    time.sleep(WAIT_S)
    leftovers = _list_files(scratch)
    result: dict[str, Any] = {
        "at": job.at,
        "workers": len(processes),
        "alive_after_5_s": len(_find_alive(processes)),
        "shared_memory_left": sorted(path.name for path in shared_files if path.exists()),
        "temporary_files_left": sorted(leftovers),
    }
    order = list(read_indices(index_file))
    try:
        restart = run_job(replace(job, task="order", at=len(order), file=""), scratch, _LIMIT_S)
        result["restart"] = {
            "same_order": restart["order"] == order,
            "first_sample_s": round(restart["first_s"], 3),
            "reason": None,
            # This run ended by itself, so it always leaves these files.
            "temporary_files_added": sorted(_list_files(scratch) - leftovers),
        }
    except JobError as error:
        result["restart"] = {"same_order": None, "first_sample_s": None, "reason": str(error)}
    finally:
        result["alive_after_restart"] = len(_find_alive(processes))
        for process in _find_alive(processes):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for path in shared_files:
            path.unlink(missing_ok=True)
    return result


def _kill(job: Job, index_file: Path, scratch: Path) -> tuple[list[psutil.Process], set[Path]]:
    """Start a job, and SIGKILL its main process; returns its workers and their files in shared memory."""
    main = start_job(job, scratch)
    deadline = time.monotonic() + _LIMIT_S
    while not index_file.exists() or index_file.stat().st_size < INDEX_BYTES * job.at:
        # A job that ends by itself, or hangs, is not killed in the middle.
        if main.poll() is not None or time.monotonic() > deadline:
            kill_group(main)
            raise JobError(f"it did not reach sample {job.at}, where it should be killed: {read_last_line(scratch)}")
        time.sleep(0.005)
    processes = [process for process in psutil.Process(main.pid).children(recursive=True) if not _is_tracker(process)]
    shared_files = set().union(
        *(_find_shared_files(pid) for pid in [main.pid, *(process.pid for process in processes)])
    )
    os.kill(main.pid, signal.SIGKILL)
    main.wait()
    return processes, shared_files


def _is_tracker(process: psutil.Process) -> bool:
    """Whether it is Python's tracker of semaphores, which ends after the last worker."""
    try:
        return "multiprocessing.resource_tracker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return True


def _find_alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """The processes that still run. Zombies do not count: there may be no parent to collect them."""
    alive = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
    return alive


def _list_files(scratch: Path) -> set[str]:
    return {str(path.relative_to(scratch)) for path in scratch.rglob("*")}


def _find_shared_files(pid: int) -> set[Path]:
    """The files in shared memory that a process has mapped: other files there may belong to other programs."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        return {Path(_SHARED + line.split(_SHARED)[1]) for line in lines if _SHARED in line and "(deleted)" not in line}
    return set()
