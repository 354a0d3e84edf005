"""Loaders side by side on the same payload in one run: rate, first sample, resume, and what a kill leaves behind.

A figure of another day or machine says little about a loader, so all that are installed take part each time, in turns,
and every measurement is a process of its own that finds its files in the page cache.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.loaders import kills
from benchmarks.loaders.contenders import CONTENDERS, SHARD_BYTES
from benchmarks.loaders.job import Job, JobError, run
from pipeline.errors import UsageError

# Where a pass is broken off and resumed: late, since a replay is dear then.
_RESUME_AT = 0.75
_KILL_AT = 0.25
# Two shards a worker: with fewer, a loader that deals out whole shards has nothing to deal or to shuffle.
_FEWEST_MB = 2 * SHARD_BYTES / 1e6


def measure(
    samples: int, megabytes: float, workers: int, repeat: int, names: Sequence[str] = tuple(CONTENDERS)
) -> dict[str, Any]:
    """All figures of all contenders, medians of `repeat` rounds; null and a reason for one that is not installed."""
    size = round(megabytes * 1e6)
    if samples * megabytes < _FEWEST_MB * workers:
        raise UsageError(f"{workers} workers need at least {_FEWEST_MB * workers:.0f} MB of samples: two shards each")
    with tempfile.TemporaryDirectory(prefix="vdot-loader-") as temporary:
        bench = _Bench(Path(temporary), workers)
        for name in names:
            bench.write(Job(name, "write", str(Path(temporary) / name), samples, size))
        for number in range(repeat):
            # The next round begins with the next contender, so that none always follows the same one.
            bench.round(number)
        bench.kill()
        found = {name: _figures(entry, samples, megabytes, workers) for name, entry in bench.entries.items()}
    return {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "samples": samples,
        "megabytes": megabytes,
        "workers": workers,
        "repeat": repeat,
        "load_before": round(bench.load, 2),
        "loaders": found,
    }


@dataclass(slots=True)
class _Entry:
    """One contender: what it says of itself, or why it has no figures, and its measurements by what was measured."""

    job: Job
    about: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    seconds: dict[tuple[Any, ...], list[float]] = field(default_factory=dict)
    exact: dict[int, bool] = field(default_factory=dict)
    kill: dict[str, Any] | None = None

    def add(self, what: tuple[Any, ...], seconds: float) -> None:
        self.seconds.setdefault(what, []).append(seconds)


class _Bench:
    def __init__(self, folder: Path, workers: int) -> None:
        self._folder = folder
        self._workers = workers
        self._scratches = 0
        self.entries: dict[str, _Entry] = {}
        self.load = psutil.getloadavg()[0]

    def write(self, job: Job) -> None:
        """Store one contender's payloads, and see that it hands out each of them once, as often as it is asked."""
        entry = self.entries[job.contender] = _Entry(job)
        Path(job.folder).mkdir()
        with _Reason(entry):
            entry.about = run(job, self._scratch())
            for way in self._ways(entry):
                first = run(replace(way, task="order"), self._scratch())["order"]
                if sorted(first) != list(range(job.samples)):
                    raise JobError(f"{len(first)} samples came, {len(set(first))} of them different, of {job.samples}")
                self._resume(entry, way, first)

    def _ways(self, entry: _Entry) -> list[Job]:
        """In process as views if there are any, in process as bytes, and with workers."""
        kinds = [True, False] if entry.about["views"] else [False]
        return [*(replace(entry.job, views=kind) for kind in kinds), replace(entry.job, workers=self._workers)]

    def _resume(self, entry: _Entry, way: Job, order: list[int]) -> None:
        """Break off a pass, and compare what comes after the resume with the undisturbed order."""
        if way.views:
            return
        state = self._folder / f"{way.contender}-{way.workers}.state"
        at = int(way.samples * _RESUME_AT)
        run(replace(way, task="save", at=at, file=str(state)), self._scratch())
        rest = run(self._resumed(way, state), self._scratch())["order"]
        entry.exact[way.workers] = rest == order[at:]

    def round(self, number: int) -> None:
        """Each way of each contender once."""
        entries = list(self.entries.values())
        for entry in entries[number % len(entries) :] + entries[: number % len(entries)]:
            if entry.reason is not None:
                continue
            with _Reason(entry):
                self._one(entry)

    def _one(self, entry: _Entry) -> None:
        for way in self._ways(entry):
            for touch in (False, True):
                _warm(Path(way.folder))
                result = run(replace(way, task="read", touch=touch), self._scratch())
                entry.add((way.workers, way.views, touch), result["wall_s"])
                entry.add(("imports",), result["imports_s"])
                if touch:
                    entry.add(("first", way.workers, way.views), result["first_s"])
            state = self._folder / f"{way.contender}-{way.workers}.state"
            if not way.views:
                _warm(Path(way.folder))
                result = run(replace(self._resumed(way, state), at=1), self._scratch())
                entry.add(("resume", way.workers), result["first_s"])

    def _resumed(self, way: Job, state: Path) -> Job:
        return replace(way, task="order", file=str(state))

    def kill(self) -> None:
        """The kill study, for each contender."""
        for entry in self.entries.values():
            if entry.reason is None:
                seen = str(self._folder / f"{entry.job.contender}.seen")
                at = int(entry.job.samples * _KILL_AT)
                job = replace(entry.job, task="run", workers=self._workers, at=at, file=seen)
                with _Reason(entry):
                    entry.kill = kills.study(job, self._scratch())

    def _scratch(self) -> Path:
        self._scratches += 1
        path = self._folder / f"scratch-{self._scratches:04d}"
        path.mkdir()
        return path


class _Reason:
    """Turns a failed job into the reason why its contender has no figures: the others go on."""

    def __init__(self, entry: _Entry) -> None:
        self._entry = entry

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, JobError):
            self._entry.reason = str(error)
        return isinstance(error, JobError)


def _figures(entry: _Entry, samples: int, megabytes: float, workers: int) -> dict[str, Any]:
    """What is printed of one contender: medians, or nothing at all if something of it failed."""
    if entry.reason is not None:
        return {"reason": entry.reason} | dict.fromkeys(("version", "imports_s", "passes", "resume", "kill"))
    median = {what: statistics.median(values) for what, values in entry.seconds.items()}

    def rates(count: int, views: bool) -> dict[str, Any]:
        told: dict[str, Any] = {}
        for label, touch in (("handed_out", False), ("touched", True)):
            walls = entry.seconds[count, views, touch]
            told[label] = {
                "samples_per_s": round(samples / median[count, views, touch]),
                "mb_per_s": round(samples * megabytes / median[count, views, touch]),
                "rounds": [round(samples / wall) for wall in walls],
            }
        return told | {"first_sample_s": round(median["first", count, views], 3)}

    passes = {"in_process_copies": rates(0, False), f"workers_{workers}_copies": rates(workers, False)}
    if entry.about["views"]:
        passes = {"in_process_views": rates(0, True)} | passes
    resume = {
        label: {"first_sample_s": round(median["resume", count], 3), "same_order": entry.exact[count]}
        for label, count in (("in_process", 0), (f"workers_{workers}", workers))
    }
    return {
        "reason": None,
        "version": entry.about["version"],
        "imports_s": round(median["imports",], 2),
        "passes": passes,
        "resume": {"at": int(samples * _RESUME_AT), "how": entry.about["resumes"]} | resume,
        "kill": entry.kill,
    }


def _warm(folder: Path) -> None:
    """Read all files once: a pass is to measure the loader, not the disk."""
    block = bytearray(8 << 20)
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.readinto(block):
                    pass
