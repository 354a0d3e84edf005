"""Runs one task of a loader in a process of its own, so that imports, first sample and resume start from nothing."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.loaders.contenders import CONTENDERS, Contender, Pass, Payload

# The first bytes of a payload are its index, so that the order can be read from a loader's samples.
INDEX_BYTES = 8
# One in this many payloads is compared byte by byte with what was written.
_COMPARED = 97
# The time of a training step, for the job that is killed, so that it cannot end before.
_STEP_S = 0.005


class JobError(Exception):
    """A job failed; the text is the last line of its output."""


@dataclass(frozen=True, slots=True)
class Job:
    """The task of a process with one contender's `samples` payloads of `size` bytes in `folder`.

    - write: store them.
    - read: a pass over all, timed; `touch`: whether a byte of each page is read.
    - order: the indices of the first `at` samples, or of all; with `file`, of those after the state in it. Compares
      lengths and a few payloads.
    - save: read `at` samples and write the state to `file`.
    - run: read until killed, and append each index to `file`.
    """

    contender: str
    task: Literal["write", "read", "order", "save", "run"]
    folder: str
    samples: int
    size: int
    workers: int = 0
    views: bool = False
    touch: bool = True
    at: int = 0
    file: str = ""


def make_payload(size: int, index: int) -> bytes:
    """Reproducible random bytes that begin with their index."""
    return index.to_bytes(INDEX_BYTES, "little") + np.random.default_rng(index).bytes(size - INDEX_BYTES)


def start_job(job: Job, scratch: Path) -> subprocess.Popen[bytes]:
    """Start a job in a fresh process and process group, with `scratch` as its folder for temporary files.

    A loader's leftovers there must not mix with other programs' files. Its output goes to a file beside the folder.
    """
    result_file, log_file = scratch.with_suffix(".json"), scratch.with_suffix(".txt")
    result_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.loaders.job", json.dumps(asdict(job)), str(result_file)]
    environment = os.environ | {"TMPDIR": str(scratch)}
    with log_file.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=scratch, start_new_session=True)


def run_job(job: Job, scratch: Path, timeout: float = 600) -> dict[str, Any]:
    """Run a job to its end and return its result. Raises `JobError`."""
    process = start_job(job, scratch)
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        raise JobError(f"{job.task} had not ended after {timeout:.0f} s") from None
    finally:
        if process.poll() is None:
            kill_group(process)
    result_file = scratch.with_suffix(".json")
    if not result_file.exists():
        raise JobError(read_last_line(scratch))
    return dict(json.loads(result_file.read_text()))


def read_last_line(scratch: Path) -> str:
    """The last line of a job's output."""
    lines = scratch.with_suffix(".txt").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it ended without any output"


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a job and its workers, which would not end by themselves."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _run_task(job: Job) -> dict[str, Any]:
    contender = CONTENDERS[job.contender]()
    started = time.perf_counter()
    contender.load()
    imports_s = time.perf_counter() - started
    tasks = {"write": _write, "read": _read, "order": _order, "save": _save, "run": _run}
    return tasks[job.task](contender, job) | {"imports_s": imports_s}


def _write(contender: Contender, job: Job) -> dict[str, Any]:
    contender.write(Path(job.folder), job.samples, partial(make_payload, job.size))
    return {"version": metadata.version(contender.package), "views": contender.views, "resumes": contender.resumes}


def _read(contender: Contender, job: Job) -> dict[str, Any]:
    started = time.perf_counter()
    first_s, count = 0.0, 0
    for sample in _start_pass(contender, job).payloads:
        if job.touch:
            _touch_pages(sample)
        if not count:
            first_s = time.perf_counter() - started
        count += 1
    wall_s = time.perf_counter() - started
    if count != job.samples:
        raise JobError(f"{count} samples came of {job.samples}")
    return {"wall_s": wall_s, "first_s": first_s}


def _order(contender: Contender, job: Job) -> dict[str, Any]:
    # A checkpoint is not always JSON. The file is our own, written a moment ago.
    state = pickle.loads(Path(job.file).read_bytes()) if job.file else None  # noqa: S301
    started = time.perf_counter()
    order: list[int] = []
    first_s = 0.0
    for sample in _start_pass(contender, job, state).payloads:
        _touch_pages(sample)
        if not order:
            first_s = time.perf_counter() - started
        index = _read_index(sample)
        order.append(index)
        if len(sample) != job.size or (index % _COMPARED == 0 and bytes(sample) != make_payload(job.size, index)):
            raise JobError(f"sample {index} is not what was written")
        if len(order) == job.at:
            break
    return {"order": order, "first_s": first_s}


def _save(contender: Contender, job: Job) -> dict[str, Any]:
    loader_pass = _start_pass(contender, job)
    for _ in range(job.at):
        next(loader_pass.payloads)
    Path(job.file).write_bytes(pickle.dumps(loader_pass.state()))
    return {}


def _run(contender: Contender, job: Job) -> dict[str, Any]:
    with Path(job.file).open("ab", buffering=0) as file:
        for sample in _start_pass(contender, job).payloads:
            file.write(_read_index(sample).to_bytes(INDEX_BYTES, "little"))
            time.sleep(_STEP_S)
    return {}


def _start_pass(contender: Contender, job: Job, state: Any | None = None) -> Pass:
    return contender.read(Path(job.folder), job.workers, job.views, state)


def _read_index(sample: Payload) -> int:
    return int.from_bytes(sample[:INDEX_BYTES], "little")


def _touch_pages(sample: Payload) -> None:
    """Read a byte of every page: a memory-mapped view is not read until it is accessed."""
    np.frombuffer(sample, np.uint8)[::4096].sum()


def read_indices(file: Path) -> Iterator[int]:
    """The indices that a killed run wrote; an incomplete last one is omitted."""
    content = file.read_bytes()
    for start in range(0, len(content) - INDEX_BYTES + 1, INDEX_BYTES):
        yield int.from_bytes(content[start : start + INDEX_BYTES], "little")


if __name__ == "__main__":
    result = _run_task(Job(**json.loads(sys.argv[1])))
    Path(sys.argv[2]).write_text(json.dumps(result))
