"""Estimates what an ingest would make and cost from a few of its sources, and checks that all is ready for it.

The sources that are new to OUT are sorted by size and divided into equal parts; one of each part is really ingested,
into scratch. A stretch stands for a long one.
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.catalog.catalog import Catalog, values
from pipeline.catalog.dataset import check_geometry, stored_recipe
from pipeline.catalog.ledger import Ledger
from pipeline.catalog.predicates import status_sql
from pipeline.engine.progress import Watcher
from pipeline.errors import ADVICE, ClipError, ErrorCode, RunError, StoppedError
from pipeline.formats.schema import Status
from pipeline.ingest.commands import add_weights, ingest, merge_manifest_columns
from pipeline.ingest.estimate import Estimate, bound_unseen, estimate_total
from pipeline.recipe.blueprint import Blueprint
from pipeline.recipe.recipe import Limits
from pipeline.recipe.recipe import load as load_recipe
from pipeline.sources import source_list
from pipeline.sources.expand import Source, expand_sources
from pipeline.stages.cut import MAX_LOCAL_CLIPS
from pipeline.storage.folder import Folder
from pipeline.storage.scratch import Scratch
from pipeline.upkeep.checks import Check, CheckStatus
from pipeline.upkeep.doctor import doctor
from pipeline.video.sandbox import Sandbox

PROBE = 20
# A source longer than this is probed by a stretch of this length: about nine clips of the default grid.
STRETCH_S = 60.0

_CLIP_KEPT = status_sql(Status.KEPT, table="c.")
_CLIP_FAILED = status_sql(Status.FAILED, table="c.")

# What one source amounts to, as SQL over its row `s` and its clips `c`; seconds are of video, of a worker, of a person.
QUANTITIES = {
    "kept_clips": f"count(*) FILTER ({_CLIP_KEPT})",
    "rejected_clips": f"count(*) FILTER ({status_sql(Status.REJECTED, table='c.')})",
    "pending_clips": f"count(*) FILTER ({status_sql(Status.PENDING, table='c.')})",
    "failed": f"count(*) FILTER ({_CLIP_FAILED}) + any_value({status_sql(Status.FAILED, table='s.')})::INT",
    "video_s": "any_value(s.source_duration_s)",
    "kept_s": f"sum((c.frames - 1) / c.fps) FILTER ({_CLIP_KEPT})",
    "bytes": "sum(coalesce(c.bytes, 0) + coalesce(c.preview_bytes, 0))",
    "work_s": "any_value(coalesce(list_sum(map_values(s.timings)), 0)) "
    "+ coalesce(sum(list_sum(map_values(c.timings))), 0)",
}
_COUNTS = ("kept_clips", "rejected_clips", "pending_clips", "failed")

# One source of each of this many equal parts, in order of size; a hash decides which one, and in which order.
_SAMPLE = """
    SELECT uri, size, stamp, manifest, content
    FROM (SELECT *, ntile({parts}) OVER (ORDER BY size, uri) AS part FROM new_source)
    QUALIFY row_number() OVER (PARTITION BY part ORDER BY md5(uri)) = 1 ORDER BY md5(uri)
"""
# How many there are, how many have a known size, their total size, and the largest of those that workers must fetch.
_SIZES = """
    SELECT count(*), count(size), coalesce(sum(size), 0)::BIGINT,
        coalesce(max(size) FILTER (contains(uri, '://')), 0) FROM new_source
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """The estimate: quantities by name, of `sources` new ones, of which `probed` were ingested for it.

    quantities: clips by verdict; failed: sources and clips; video_s and kept_s: seconds of video in and kept; bytes:
    of the dataset; work_s: seconds of one core. wall_s: (expected, least, most) on `cpus` CPUs, None where a single
    probed source shows no spread. overhead: wall seconds per second of evenly shared work, measured in the probe.
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

    def as_dict(self) -> dict[str, object]:
        """The fields, with the total of each quantity."""
        totals = {name: asdict(estimate) | {"total": estimate.total} for name, estimate in self.quantities.items()}
        return asdict(self) | {"quantities": totals}


@dataclass(frozen=True, slots=True)
class Amounts:
    """What one source amounts to: each of `QUANTITIES`, its clips, and the seconds of finding them; its error code if
    it failed, and its codec."""

    source_uri: str
    code: str | None
    codec: str | None
    clips: int
    scan_s: float
    quantities: dict[str, float]


@dataclass(frozen=True, slots=True)
class _Probe:
    """A source that represents its part of all: where the probe reads it, which share of it, and how long copying a
    stretch took, which stands for fetching."""

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
    """Estimate an ingest of `sources` into OUT (None: into an empty one) on `cpus` CPUs (None: this machine's).

    The probe runs here, on all cores. Raises as `ingest`.
    """
    recipe = load_recipe(recipe_file)
    with Scratch() as scratch:
        listing = source_list.write(expand_sources(sources, exclude), limit, scratch.path / "listing.parquet")
        catalog = Catalog(Folder(out if out is not None else str(scratch.path / "empty")), scratch.path)
        if not catalog.is_empty():
            check_geometry(recipe, stored_recipe(catalog), str(out))
        blueprint = add_weights(Blueprint.for_ingest(recipe, merge_manifest_columns(listing, catalog, recipe)))
        ledger = Ledger(catalog, blueprint, listing)
        new = ledger.new_sources()
        selection = [
            Source(uri, size, stamp, json.loads(manifest), content)
            for uri, size, stamp, manifest, content in new.query("new_source", _SAMPLE.format(parts=probe)).fetchall()
        ]
        [(count, sized, size, largest)] = new.query("new_source", _SIZES).fetchall()
        exists = out is not None and (catalog.out.local is None or catalog.out.local.exists())
        checks = [check for check in doctor(out if exists else None) if check.status != CheckStatus.OK]
        if (stored := ledger.count_work() - count) > 0:
            text = f"{stored} are to be annotated again by this recipe"
            checks.append(Check("stored clips", CheckStatus.WARN, text, "that work is not in these numbers"))
        started = time.monotonic()
        probes = _cut_stretches(selection, recipe.limits, scratch.path)
        rows, startup_s, steady_s = (
            _ingest_probes(probes, recipe_file, scratch.path, watcher) if probes else ([], 0.0, 0.0)
        )
        probe_s = time.monotonic() - started
        remaining_size = (
            size - sum(source_probe.source.size or 0 for source_probe in probes) if sized == count else None
        )
        quantities = _estimate_quantities(rows, probes, count - len(rows), remaining_size)
        alone_s = max(
            (_time_alone(row, probed) / probed.share for row, probed in zip(rows, probes, strict=True)), default=0.0
        )
        overhead = _measure_overhead([row.quantities["work_s"] for row in rows], steady_s)
        workers = cpus or os.cpu_count() or 1
        checks += _check_failures(rows)
        if out is not None and catalog.out.local is not None:
            needed_bytes = quantities["bytes"].sampled + (quantities["bytes"].high or quantities["bytes"].rest)
            checks += _check_space(catalog.out.local, needed_bytes, "choose an OUT with more room")
        checks += _check_space(scratch.path, largest * (os.cpu_count() or 1), "point VDOT_SCRATCH to a larger disk")
    return Plan(
        sources=count,
        probed=tuple(source_probe.source.uri for source_probe in probes),
        probe_s=probe_s,
        quantities=quantities,
        cpus=workers,
        wall_s=_estimate_wall(quantities["work_s"], alone_s, overhead, workers, startup_s),
        overhead=overhead,
        codecs=dict(Counter(row.codec for row in rows if row.codec).most_common()),
        checks=tuple(checks),
    )


def _cut_stretches(selection: Sequence[Source], limits: Limits, scratch: Path) -> list[_Probe]:
    """Each source as the probe reads it: a stretch of a long one, any other as it is."""
    probes = []
    with Sandbox(limits.memory_mb, limits.stall_s) as sandbox:
        # Starting the child is not part of any source's work.
        [*_] = sandbox.stream("pipeline.video.excerpt:warm_up")
        for number, source in enumerate(selection):
            started, stretch = time.monotonic(), scratch / f"stretch-{number:04}.mkv"
            position = int(hashlib.sha256(source.uri.encode()).hexdigest()[:8], 16) / 16**8
            work = sandbox.stream("pipeline.video.excerpt:cut", source.uri, stretch, limits.pixels, STRETCH_S, position)
            lengths = None
            if source.content is None:
                # If something is wrong with the source, ingesting all of it will say so.
                with suppress(ClipError):
                    [lengths] = work
            if lengths is None:
                probes.append(_Probe(source, source.uri, 1.0, 0.0))
            else:
                probes.append(_Probe(source, str(stretch), lengths[1] / lengths[0], time.monotonic() - started))
    return probes


def _ingest_probes(
    probes: Sequence[_Probe], recipe_file: Path | None, scratch: Path, watcher: Watcher
) -> tuple[list[Amounts], float, float]:
    """Ingest the probes: amounts of each source, or of the stretch that stands for it; seconds of start-up and of
    the rest of the run."""
    manifest = scratch / "probe.jsonl"
    manifest.write_text(
        "".join(json.dumps({"uri": source_probe.uri, **source_probe.source.manifest}) + "\n" for source_probe in probes)
    )
    out = str(scratch / "probe")
    try:
        summary = ingest([str(manifest)], out, recipe_file=recipe_file, watcher=watcher)
    except StoppedError as error:
        raise RunError("stopped on request; a plan keeps nothing, and starts over") from error
    rows_by_uri = {row.source_uri: row for row in read_amounts(Catalog(Folder(out), scratch))}
    rows = []
    for source_probe in probes:
        row = rows_by_uri[source_probe.uri]
        work_s = row.quantities["work_s"] + source_probe.copy_s
        rows.append(replace(row, quantities=row.quantities | {"work_s": work_s}))
    return rows, summary.startup_s, summary.wall_s - summary.startup_s


def _time_alone(row: Amounts, source_probe: _Probe) -> float:
    """The seconds that only one worker can work on a probed source: clips of a longer source are spread over the
    cluster, and finding them is one worker's."""
    if row.clips <= MAX_LOCAL_CLIPS * source_probe.share:
        return row.quantities["work_s"]
    return row.scan_s + source_probe.copy_s


def read_amounts(catalog: Catalog) -> list[Amounts]:
    """Read what every source of a dataset without layers amounts to."""
    quantities = ", ".join(f"{name} := coalesce({sql}, 0)" for name, sql in QUANTITIES.items())
    rows = values(
        catalog.connect(),
        "SELECT s.source_uri, any_value(s.code) AS code, any_value(s.source_codec) AS codec, "
        "count(c.clip_id) AS clips, coalesce(any_value(list_sum(map_values(s.timings))), 0) AS scan_s, "
        f"struct_pack({quantities}) AS quantities "
        "FROM sources s LEFT JOIN clips c USING (source_uri) GROUP BY s.source_uri",
    )
    return [Amounts(**row) for row in rows]


def _estimate_quantities(
    rows: Sequence[Amounts], probes: Sequence[_Probe], count: int, size: float | None
) -> dict[str, Estimate]:
    """Estimate the quantities of all sources: the probed ones and `count` more, of `size` bytes if that is known."""
    shares = np.array([source_probe.share for source_probe in probes])
    sizes = np.array([source_probe.source.size or 0 for source_probe in probes], float)
    clips = max((row.clips / source_probe.share for row, source_probe in zip(rows, probes, strict=True)), default=0.0)
    estimates = {}
    for name in QUANTITIES:
        measured = np.array([row.quantities[name] for row in rows], float)
        # A source fails as a whole.
        examined = np.ones(len(rows)) if name == "failed" else shares
        estimates[name] = estimate_total(measured / examined, sizes, count, size, examined)
        if name in _COUNTS:
            estimates[name] = _widen_empty(estimates[name], len(rows), count, clips)
    return estimates


def _widen_empty(estimate: Estimate, probed: int, remaining: int, clips: float) -> Estimate:
    """Widen an interval where no probed source has any: the rest may have some, and a sample without spread has none.

    `clips`: the most that a probed source has.
    """
    if estimate.sampled or not probed:
        return estimate
    return Estimate(0.0, 0.0, 0.0, bound_unseen(probed, remaining) * max(1.0, clips))


def _measure_overhead(work_s: Sequence[float], steady_s: float) -> float:
    """Wall seconds of the probe per second that its work alone would take, with each source begun by the first free
    core, as in a run."""
    busy_s = [0.0] * (os.cpu_count() or 1)
    for seconds in work_s:
        heapq.heapreplace(busy_s, busy_s[0] + seconds)
    return max(1.0, steady_s / max(busy_s)) if max(busy_s) > 0 else 1.0


def _estimate_wall(
    work: Estimate, alone_s: float, overhead: float, cpus: int, startup_s: float
) -> tuple[float, float | None, float | None]:
    """Estimate the expected, least and most wall seconds; `alone_s`: the longest that one source keeps one worker busy.

    The least assumes no overhead: a short probe has more of it than a long run.
    """

    def wall(seconds: float, overhead: float) -> float:
        return startup_s + overhead * max(seconds / cpus, alone_s)

    low = None if work.low is None else wall(work.sampled + work.low, 1.0)
    high = None if work.high is None else wall(work.sampled + work.high, overhead)
    return wall(work.total, overhead), low, high


def _check_failures(rows: Sequence[Amounts]) -> Iterator[Check]:
    codes = Counter(row.code for row in rows if row.code)
    status = CheckStatus.FAIL if codes.total() == len(rows) else CheckStatus.WARN
    for code, count in codes.most_common():
        yield Check(f"{code} in the probe", status, f"{count} of {len(rows)} sources", ADVICE[ErrorCode(code)])


def _check_space(folder: Path, need: float, advice: str) -> Iterator[Check]:
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
    if free < need:
        yield Check(
            f"free space in {folder}",
            CheckStatus.FAIL,
            f"{free / 1e9:.1f} GB, and {need / 1e9:.1f} GB may be needed",
            advice,
        )
