"""One piece of a loader's work in a process of its own, so that imports, first sample and resume start from nothing."""

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

# The first bytes of a payload say which one it is, so that an order can be read off what a loader hands out.
INDEX_BYTES = 8
# Every so many payloads one is compared with what was written, byte by byte.
_COMPARED = 97
# What a training step would take, for the job that is killed: so it cannot end before.
_STEP_S = 0.005


class JobError(Exception):
    """A job ended badly; the text is the last that it said."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a process does with one contender's `samples` payloads of `size` bytes in `folder`.

    - write: store them.
    - read: a pass over all, timed; `touch` says whether a byte of each page is read.
    - order: the indices of the first `at` samples, or of all; with `file`, of those after the state in it. Compares
      lengths and a few payloads.
    - save: read `at` samples and leave the state in `file`.
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


def payload(size: int, index: int) -> bytes:
    """Random bytes that begin with their index, the same each time."""
    return index.to_bytes(INDEX_BYTES, "little") + np.random.default_rng(index).bytes(size - INDEX_BYTES)


def start(job: Job, scratch: Path) -> subprocess.Popen[bytes]:
    """Begin a job in a fresh process and process group, with `scratch` as its folder for temporary files.

    What a loader leaves there must not mix with other programs' files. What it says goes to a file beside it.
    """
    result, said = scratch.with_suffix(".json"), scratch.with_suffix(".txt")
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.loaders.job", json.dumps(asdict(job)), str(result)]
    environment = os.environ | {"TMPDIR": str(scratch)}
    with said.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=scratch, start_new_session=True)


def run(job: Job, scratch: Path, timeout: float = 600) -> dict[str, Any]:
    """Do a job to its end and return what came of it. Raises `JobError`."""
    process = start(job, scratch)
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        raise JobError(f"{job.task} had not ended after {timeout:.0f} s") from None
    finally:
        if process.poll() is None:
            end(process)
    result = scratch.with_suffix(".json")
    if not result.exists():
        raise JobError(last_words(scratch))
    return dict(json.loads(result.read_text()))


def last_words(scratch: Path) -> str:
    """The last line that a job said."""
    lines = scratch.with_suffix(".txt").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it died without a word"


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a job with its workers, which would not end by themselves."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _main(job: Job) -> dict[str, Any]:
    contender = CONTENDERS[job.contender]()
    started = time.perf_counter()
    contender.load()
    imports_s = time.perf_counter() - started
    tasks = {"write": _write, "read": _read, "order": _order, "save": _save, "run": _run}
    return tasks[job.task](contender, job) | {"imports_s": imports_s}


def _write(contender: Contender, job: Job) -> dict[str, Any]:
    contender.write(Path(job.folder), job.samples, partial(payload, job.size))
    return {"version": metadata.version(contender.package), "views": contender.views, "resumes": contender.resumes}


def _read(contender: Contender, job: Job) -> dict[str, Any]:
    started = time.perf_counter()
    first_s, count = 0.0, 0
    for sample in _begin(contender, job).payloads:
        if job.touch:
            _touch(sample)
        if not count:
            first_s = time.perf_counter() - started
        count += 1
    wall_s = time.perf_counter() - started
    if count != job.samples:
        raise JobError(f"{count} samples came of {job.samples}")
    return {"wall_s": wall_s, "first_s": first_s}


def _order(contender: Contender, job: Job) -> dict[str, Any]:
    # What a checkpoint holds is not only JSON. The file is our own, of a moment ago.
    state = pickle.loads(Path(job.file).read_bytes()) if job.file else None  # noqa: S301
    started = time.perf_counter()
    order: list[int] = []
    first_s = 0.0
    for sample in _begin(contender, job, state).payloads:
        _touch(sample)
        if not order:
            first_s = time.perf_counter() - started
        index = _index(sample)
        order.append(index)
        if len(sample) != job.size or (index % _COMPARED == 0 and bytes(sample) != payload(job.size, index)):
            raise JobError(f"sample {index} is not what was written")
        if len(order) == job.at:
            break
    return {"order": order, "first_s": first_s}


def _save(contender: Contender, job: Job) -> dict[str, Any]:
    reading = _begin(contender, job)
    for _ in range(job.at):
        next(reading.payloads)
    Path(job.file).write_bytes(pickle.dumps(reading.state()))
    return {}


def _run(contender: Contender, job: Job) -> dict[str, Any]:
    with Path(job.file).open("ab", buffering=0) as file:
        for sample in _begin(contender, job).payloads:
            file.write(_index(sample).to_bytes(INDEX_BYTES, "little"))
            time.sleep(_STEP_S)
    return {}


def _begin(contender: Contender, job: Job, state: Any | None = None) -> Pass:
    return contender.read(Path(job.folder), job.workers, job.views, state)


def _index(sample: Payload) -> int:
    return int.from_bytes(sample[:INDEX_BYTES], "little")


def _touch(sample: Payload) -> None:
    """Read a byte of every page: a memory-mapped view that nobody looks at was not read."""
    np.frombuffer(sample, np.uint8)[::4096].sum()


def indices(file: Path) -> Iterator[int]:
    """What a run that was killed wrote down; a torn last index is left out."""
    content = file.read_bytes()
    for begin in range(0, len(content) - INDEX_BYTES + 1, INDEX_BYTES):
        yield int.from_bytes(content[begin : begin + INDEX_BYTES], "little")


if __name__ == "__main__":
    result = _main(Job(**json.loads(sys.argv[1])))
    Path(sys.argv[2]).write_text(json.dumps(result))
