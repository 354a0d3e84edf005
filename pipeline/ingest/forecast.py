"""What an ingest would make and cost, foretold from a few of its sources, and whether all is ready for it.

The sources that are new to OUT are put in order of size and cut into equal parts; one of each part is ingested for
real, into scratch. Of a long one a stretch stands for the whole.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.catalog.catalog import Catalog, values
from pipeline.catalog.dataset import check_geometry, stored_recipe
from pipeline.catalog.ledger import Ledger
from pipeline.engine.progress import Watcher
from pipeline.errors import ADVICE, ClipError, ErrorCode, RunError, StoppedError
from pipeline.ingest.commands import ingest, manifest_of, with_weights
from pipeline.ingest.estimate import Estimate, total, unseen
from pipeline.recipe import recipe
from pipeline.recipe.blueprint import Blueprint
from pipeline.recipe.recipe import Limits
from pipeline.sources import source_list
from pipeline.sources.expand import Source, expand_sources
from pipeline.stages.cut import FEW
from pipeline.storage.folder import Folder
from pipeline.storage.scratch import Scratch
from pipeline.upkeep.checks import Check, Status
from pipeline.upkeep.doctor import doctor
from pipeline.video.sandbox import Sandbox

PROBE = 20
# A source longer than this is probed by a stretch of this length: about nine clips of the default grid.
STRETCH_S = 60.0

# What one source amounts to, as SQL over its row `s` and its clips `c`; seconds are of video, of a worker, of a person.
QUANTITIES = {
    "kept_clips": "count(*) FILTER (c.status = 'kept')",
    "rejected_clips": "count(*) FILTER (c.status = 'rejected')",
    "pending_clips": "count(*) FILTER (c.status = 'pending')",
    "failed": "count(*) FILTER (c.status = 'failed') + any_value(s.status = 'failed')::INT",
    "video_s": "any_value(s.source_duration_s)",
    "kept_s": "sum((c.frames - 1) / c.fps) FILTER (c.status = 'kept')",
    "bytes": "sum(coalesce(c.bytes, 0) + coalesce(c.preview_bytes, 0))",
    "work_s": "any_value(coalesce(list_sum(map_values(s.timings)), 0)) "
    "+ coalesce(sum(list_sum(map_values(c.timings))), 0)",
}
# What else the plan asks of a source: its clips, and the seconds that it keeps one worker busy alone.
_MORE = {"clips": "count(c.clip_id)", "scan_s": "any_value(list_sum(map_values(s.timings)))"}
_COUNTS = ("kept_clips", "rejected_clips", "pending_clips", "failed")

# One source of each of so many equal parts, in order of size; which one, and when its turn comes, is chance's.
_SAMPLE = """
    SELECT uri, size, stamp, manifest, content
    FROM (SELECT *, ntile({parts}) OVER (ORDER BY size, uri) AS part FROM new_source)
    QUALIFY row_number() OVER (PARTITION BY part ORDER BY md5(uri)) = 1 ORDER BY md5(uri)
"""
# How many there are, of how many the size is known, and of those that workers must fetch the largest.
_SIZES = """
    SELECT count(*), count(size), coalesce(sum(size), 0)::BIGINT,
        coalesce(max(size) FILTER (contains(uri, '://')), 0) FROM new_source
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What was foretold: quantities by name, of `sources` new ones of which `probed` were ingested for it.

    quantities: clips by verdict; failed: sources and clips; video_s and kept_s: seconds of video in and kept; bytes:
    of the dataset; work_s: seconds of one core. wall_s: (expected, least, most) on `cpus` CPUs, None where one probed
    source tells of no spread. overhead: wall seconds per second of evenly shared work, as the probe had it.
    """

    sources: int
    probed: tuple[str, ...]
    probe_s: float
    quantities: dict[str, Estimate]
    cpus: int
    wall_s: tuple[float, float | None, float | None]
    overhead: float
    codecs: dict[str, int]
    checks: tuple[Check, ...]

    def as_json(self) -> str:
        """One line of JSON."""
        totals = {name: asdict(found) | {"total": found.total} for name, found in self.quantities.items()}
        return json.dumps(asdict(self) | {"quantities": totals})


@dataclass(frozen=True, slots=True)
class _Probed:
    """A source that stands for its part of all: where the probe reads it, which share of it, and how long a stretch
    took to copy, which stands for the fetching."""

    source: Source
    uri: str
    share: float
    copy_s: float


def plan(
    sources: Iterable[str],
    out: str | None = None,
    *,
    recipe_file: Path | None = None,
    exclude: str | None = None,
    limit: int | None = None,
    probe: int = PROBE,
    cpus: int | None = None,
    watcher: Watcher = lambda _: None,
) -> Plan:
    """Foretell an ingest of `sources` into OUT (None: into an empty one) on `cpus` CPUs (None: this machine's).

    The probe runs here, on all cores. Raises as `ingest`.
    """
    chosen = recipe.load(recipe_file)
    with Scratch() as scratch:
        listed = source_list.write(expand_sources(sources, exclude), limit, scratch.path / "listing.parquet")
        catalog = Catalog(Folder(out if out is not None else str(scratch.path / "empty")), scratch.path)
        if not catalog.is_empty():
            check_geometry(chosen, stored_recipe(catalog), str(out))
        blueprint = with_weights(Blueprint.for_ingest(chosen, manifest_of(listed, catalog, chosen)))
        ledger = Ledger(catalog, blueprint, listed)
        new = ledger.new_sources()
        picked = [
            Source(uri, size, stamp, json.loads(manifest), content)
            for uri, size, stamp, manifest, content in new.query("new_source", _SAMPLE.format(parts=probe)).fetchall()
        ]
        [(count, known, size, largest)] = new.query("new_source", _SIZES).fetchall()
        there = out is not None and (catalog.out.local is None or catalog.out.local.exists())
        checks = [check for check in doctor(out if there else None) if check.status != "ok"]
        if (stored := ledger.count_work() - count) > 0:
            told = f"{stored} are to be annotated anew by this recipe"
            checks.append(Check("stored clips", "warn", told, "what that takes is not in these numbers"))
        started = time.monotonic()
        probes = _stretches(picked, chosen.limits, scratch.path)
        rows, startup_s, steady_s = _ingested(probes, recipe_file, scratch.path, watcher) if probes else ([], 0.0, 0.0)
        probe_s = time.monotonic() - started
        rest = size - sum(one.source.size or 0 for one in probes) if known == count else None
        quantities = _quantities(rows, probes, count - len(rows), rest)
        alone_s = max((row["alone_s"] / one.share for row, one in zip(rows, probes, strict=True)), default=0.0)
        overhead = _overhead([row["work_s"] for row in rows], steady_s)
        workers = cpus or os.cpu_count() or 1
        checks += _failures(rows)
        if out is not None and catalog.out.local is not None:
            most = quantities["bytes"].sampled + (quantities["bytes"].high or quantities["bytes"].rest)
            checks += _room(catalog.out.local, most, "choose an OUT with more room")
        checks += _room(scratch.path, largest * (os.cpu_count() or 1), "point VDOT_SCRATCH to a larger disk")
    return Plan(
        sources=count,
        probed=tuple(one.source.uri for one in probes),
        probe_s=probe_s,
        quantities=quantities,
        cpus=workers,
        wall_s=_wall(quantities["work_s"], alone_s, overhead, workers, startup_s),
        overhead=overhead,
        codecs=dict(Counter(row["codec"] for row in rows if row["codec"]).most_common()),
        checks=tuple(checks),
    )


def _stretches(picked: Sequence[Source], limits: Limits, scratch: Path) -> list[_Probed]:
    """Each source as the probe reads it: a stretch of a long one, any other as it is."""
    found = []
    with Sandbox(limits.memory_mb, limits.stall_s) as box:
        # Its start is nobody's work.
        [*_] = box.stream("pipeline.video.excerpt:warm_up")
        for number, source in enumerate(picked):
            started, stretch = time.monotonic(), scratch / f"stretch-{number:04}.mkv"
            at = int(hashlib.sha256(source.uri.encode()).hexdigest()[:8], 16) / 16**8
            work = box.stream("pipeline.video.excerpt:cut", source.uri, stretch, limits.pixels, STRETCH_S, at)
            lengths = None
            if source.content is None:
                # What is wrong with it, if anything is, the ingest of the whole will say.
                with suppress(ClipError):
                    [lengths] = work
            if lengths is None:
                found.append(_Probed(source, source.uri, 1.0, 0.0))
            else:
                found.append(_Probed(source, str(stretch), lengths[1] / lengths[0], time.monotonic() - started))
    return found


def _ingested(
    probes: Sequence[_Probed], recipe_file: Path | None, scratch: Path, watcher: Watcher
) -> tuple[list[dict[str, Any]], float, float]:
    """What became of each source, or of the stretch that stands for it, as quantities; seconds of start-up and of the
    rest of the run."""
    manifest = scratch / "probe.jsonl"
    manifest.write_text("".join(json.dumps({"uri": one.uri, **one.source.manifest}) + "\n" for one in probes))
    out = str(scratch / "probe")
    try:
        summary = ingest([str(manifest)], out, recipe_file=recipe_file, watcher=watcher)
    except StoppedError as error:
        raise RunError("stopped on request; a plan keeps nothing, and begins anew") from error
    told = {row["source_uri"]: row for row in amounts(Catalog(Folder(out), scratch))}
    rows = []
    for one in probes:
        row = told[one.uri]
        row["work_s"] += one.copy_s
        # Clips of a longer source are spread over the cluster; finding them is one worker's.
        row["alone_s"] = row["work_s"] if row["clips"] <= FEW * one.share else row["scan_s"] + one.copy_s
        rows.append(row)
    return rows, summary.startup_s, summary.wall_s - summary.startup_s


def amounts(catalog: Catalog) -> list[dict[str, Any]]:
    """Of each source of a dataset without layers: its URI, code and codec, and each of `QUANTITIES`."""
    columns = ", ".join(f"coalesce({sql}, 0) AS {name}" for name, sql in (QUANTITIES | _MORE).items())
    return values(
        catalog.connect(),
        f"SELECT s.source_uri, any_value(s.code) AS code, any_value(s.source_codec) AS codec, {columns} "
        "FROM sources s LEFT JOIN clips c USING (source_uri) GROUP BY s.source_uri",
    )


def _quantities(
    rows: Sequence[dict[str, Any]], probes: Sequence[_Probed], count: int, size: float | None
) -> dict[str, Estimate]:
    """What all sources amount to: the probed ones and `count` more, of `size` bytes if that is known."""
    shares = np.array([one.share for one in probes])
    sizes = np.array([one.source.size or 0 for one in probes], float)
    clips = max((row["clips"] / one.share for row, one in zip(rows, probes, strict=True)), default=0.0)
    found = {}
    for name in QUANTITIES:
        measured = np.array([row[name] for row in rows], float)
        # A source fails as a whole.
        seen = np.ones(len(rows)) if name == "failed" else shares
        found[name] = total(measured / seen, sizes, count, size, seen)
        if name in _COUNTS:
            found[name] = _bounded(found[name], len(rows), count, clips)
    return found


def _bounded(found: Estimate, probed: int, rest: int, clips: float) -> Estimate:
    """Where no probed source has any, the rest may have some: the interval of a sample without spread is too short.

    `clips`: the most that a probed source has.
    """
    if found.sampled or not probed:
        return found
    return Estimate(0.0, 0.0, 0.0, unseen(probed, rest) * max(1.0, clips))


def _overhead(work_s: Sequence[float], steady_s: float) -> float:
    """Wall seconds of the probe per second that its work would take if nothing but the work took time: each source
    begun by the first core that is free, as the run does it."""
    free = [0.0] * (os.cpu_count() or 1)
    for seconds in work_s:
        heapq.heapreplace(free, free[0] + seconds)
    return max(1.0, steady_s / max(free)) if max(free) > 0 else 1.0


def _wall(
    work: Estimate, alone_s: float, overhead: float, cpus: int, startup_s: float
) -> tuple[float, float | None, float | None]:
    """Expected, least and most wall seconds; `alone_s`: the longest that one source keeps one worker busy.

    The least is that of a run without any overhead: a short probe has more of it than a long run.
    """

    def wall(seconds: float, overhead: float) -> float:
        return startup_s + overhead * max(seconds / cpus, alone_s)

    low = None if work.low is None else wall(work.sampled + work.low, 1.0)
    high = None if work.high is None else wall(work.sampled + work.high, overhead)
    return wall(work.total, overhead), low, high


def _failures(rows: Sequence[dict[str, Any]]) -> Iterator[Check]:
    codes = Counter(row["code"] for row in rows if row["code"])
    status: Status = "fail" if codes.total() == len(rows) else "warn"
    for code, count in codes.most_common():
        yield Check(f"{code} in the probe", status, f"{count} of {len(rows)} sources", ADVICE[ErrorCode(code)])


def _room(folder: Path, need: float, advice: str) -> Iterator[Check]:
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
    if free < need:
        yield Check(
            f"free space in {folder}", "fail", f"{free / 1e9:.1f} GB, and {need / 1e9:.1f} GB may be needed", advice
        )
