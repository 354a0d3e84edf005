"""Compares loaders on the same payload in one run: rate, first sample, resume, and what a kill leaves behind.

Figures from another day or machine say little about a loader, so every run measures all installed ones in turns, each
measurement in a process of its own that finds its files in the page cache.
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
from benchmarks.loaders.job import Job, JobError, run_job
from pipeline.errors import UsageError

# The share of a pass after which it is interrupted and resumed: late, because a replay is expensive then.
_RESUME_AT = 0.75
_KILL_AT = 0.25
# Two shards per worker: with fewer, a loader that assigns complete shards has nothing to assign or to shuffle.
_MIN_MB = 2 * SHARD_BYTES / 1e6


def measure(
    samples: int, megabytes: float, workers: int, repeat: int, names: Sequence[str] = tuple(CONTENDERS)
) -> dict[str, Any]:
    """All figures of all contenders, medians of `repeat` rounds; None and a reason for one that is not installed."""
    size = round(megabytes * 1e6)
    if samples * megabytes < _MIN_MB * workers:
        raise UsageError(f"{workers} workers need at least {_MIN_MB * workers:.0f} MB of samples: two shards each")
    with tempfile.TemporaryDirectory(prefix="vdot-loader-") as temporary:
        bench = _Benchmark(Path(temporary), workers)
        for name in names:
            bench.write_payloads(Job(name, "write", str(Path(temporary) / name), samples, size))
        for number in range(repeat):
            # The next round starts with the next contender, so that the first place rotates.
            bench.run_round(number)
        bench.measure_kills()
        figures = {name: _format_figures(entry, samples, megabytes, workers) for name, entry in bench.entries.items()}
    return {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "samples": samples,
        "megabytes": megabytes,
        "workers": workers,
        "repeat": repeat,
        "load_before": round(bench.load, 2),
        "loaders": figures,
    }


@dataclass(slots=True)
class _Entry:
    """One contender: its description, or the reason why it has no figures, and its measurements by their kind."""

    job: Job
    about: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    seconds: dict[tuple[Any, ...], list[float]] = field(default_factory=dict)
    exact: dict[int, bool] = field(default_factory=dict)
    kill: dict[str, Any] | None = None

    def add(self, key: tuple[Any, ...], seconds: float) -> None:
        self.seconds.setdefault(key, []).append(seconds)


class _Benchmark:
    def __init__(self, folder: Path, workers: int) -> None:
        self._folder = folder
        self._workers = workers
        self._scratches = 0
        self.entries: dict[str, _Entry] = {}
        self.load = psutil.getloadavg()[0]

    def write_payloads(self, job: Job) -> None:
        """Store one contender's payloads, and check that every variant yields each of them exactly once."""
        entry = self.entries[job.contender] = _Entry(job)
        Path(job.folder).mkdir()
        with _FailureReason(entry):
            entry.about = run_job(job, self._new_scratch())
            for variant in self._list_variants(entry):
                order = run_job(replace(variant, task="order"), self._new_scratch())["order"]
                if sorted(order) != list(range(job.samples)):
                    raise JobError(f"{len(order)} samples came, {len(set(order))} of them different, of {job.samples}")
                self._check_resume(entry, variant, order)

    def _list_variants(self, entry: _Entry) -> list[Job]:
        """In process with views if supported, in process with bytes, and with workers."""
        kinds = [True, False] if entry.about["views"] else [False]
        return [*(replace(entry.job, views=kind) for kind in kinds), replace(entry.job, workers=self._workers)]

    def _check_resume(self, entry: _Entry, variant: Job, order: list[int]) -> None:
        """Interrupt a pass, and compare the order after the resume with the undisturbed order."""
        if variant.views:
            return
        state = self._folder / f"{variant.contender}-{variant.workers}.state"
        at = int(variant.samples * _RESUME_AT)
        run_job(replace(variant, task="save", at=at, file=str(state)), self._new_scratch())
        remainder = run_job(self._build_resume_job(variant, state), self._new_scratch())["order"]
        entry.exact[variant.workers] = remainder == order[at:]

    def run_round(self, number: int) -> None:
        """Measure each variant of each contender once."""
        entries = list(self.entries.values())
        for entry in entries[number % len(entries) :] + entries[: number % len(entries)]:
            if entry.reason is not None:
                continue
            with _FailureReason(entry):
                self._measure_entry(entry)

    def _measure_entry(self, entry: _Entry) -> None:
        for variant in self._list_variants(entry):
            for touch in (False, True):
                _warm_cache(Path(variant.folder))
                result = run_job(replace(variant, task="read", touch=touch), self._new_scratch())
                entry.add((variant.workers, variant.views, touch), result["wall_s"])
                entry.add(("imports",), result["imports_s"])
                if touch:
                    entry.add(("first", variant.workers, variant.views), result["first_s"])
            state = self._folder / f"{variant.contender}-{variant.workers}.state"
            if not variant.views:
                _warm_cache(Path(variant.folder))
                result = run_job(replace(self._build_resume_job(variant, state), at=1), self._new_scratch())
                entry.add(("resume", variant.workers), result["first_s"])

    def _build_resume_job(self, variant: Job, state: Path) -> Job:
        return replace(variant, task="order", file=str(state))

    def measure_kills(self) -> None:
        """The kill study, for each contender."""
        for entry in self.entries.values():
            if entry.reason is None:
                index_file = str(self._folder / f"{entry.job.contender}.seen")
                at = int(entry.job.samples * _KILL_AT)
                job = replace(entry.job, task="run", workers=self._workers, at=at, file=index_file)
                with _FailureReason(entry):
                    entry.kill = kills.study_kill(job, self._new_scratch())

    def _new_scratch(self) -> Path:
        self._scratches += 1
        path = self._folder / f"scratch-{self._scratches:04d}"
        path.mkdir()
        return path


class _FailureReason:
    """Turns a failed job into the reason why its contender has no figures; the others continue."""

    def __init__(self, entry: _Entry) -> None:
        self._entry = entry

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, JobError):
            self._entry.reason = str(error)
        return isinstance(error, JobError)


def _format_figures(entry: _Entry, samples: int, megabytes: float, workers: int) -> dict[str, Any]:
    """The printed figures of one contender: medians, or only a reason if any of its jobs failed."""
    if entry.reason is not None:
        return {"reason": entry.reason} | dict.fromkeys(("version", "imports_s", "passes", "resume", "kill"))
    median = {key: statistics.median(values) for key, values in entry.seconds.items()}

    def summarize_pass(count: int, views: bool) -> dict[str, Any]:
        rates: dict[str, Any] = {}
        for label, touch in (("handed_out", False), ("touched", True)):
            walls = entry.seconds[count, views, touch]
            rates[label] = {
                "samples_per_s": round(samples / median[count, views, touch]),
                "mb_per_s": round(samples * megabytes / median[count, views, touch]),
                "rounds": [round(samples / wall) for wall in walls],
            }
        return rates | {"first_sample_s": round(median["first", count, views], 3)}

    passes = {
        "in_process_copies": summarize_pass(0, False),
        f"workers_{workers}_copies": summarize_pass(workers, False),
    }
    if entry.about["views"]:
        passes = {"in_process_views": summarize_pass(0, True)} | passes
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


def _warm_cache(folder: Path) -> None:
    """Read all files once: a pass should measure the loader, not the disk."""
    block = bytearray(8 << 20)
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.readinto(block):
                    pass
