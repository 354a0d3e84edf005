"""The first stage of the Ray plan: sources to clips, encoded, measured by the cheap filters, and annotated if few.

Whatever goes wrong with one source or clip becomes its verdict here (`errors.attempt`); only `RunError` leaves.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from annotators.base import Frames
from pipeline.errors import ErrorCode, Failure, attempt
from pipeline.formats import shards
from pipeline.formats.clip_decode import decode_clip
from pipeline.formats.schema import BASE_LAYER, PLACE
from pipeline.recipe.blueprint import Blueprint
from pipeline.sources.expand import Source
from pipeline.sources.fetch import LocalFile, fetch_source
from pipeline.stages import sandboxed
from pipeline.stages.annotate import AnnotateStage
from pipeline.stages.attempts import Attempts
from pipeline.stages.item import Item, failed
from pipeline.storage.folder import Folder
from pipeline.storage.scratch import Scratch
from pipeline.video import process, shots
from pipeline.video.grid import Window, count_missing_frames, shots_of, typical_step
from pipeline.video.sandbox import Sandbox

# Someone who kills the decoder may be about to kill this worker too: what it says then must not become a verdict.
_PAUSE_S = 1.0
# The clips of a source that has no more than this many are annotated by the worker that cut them, which saves the way
# through Ray and the second process on a core; those of a longer source are spread over the cluster.
FEW = 4


class _KilledError(Exception):
    """The decoder was killed, and the source is not to blame."""


class CutStage:
    """Sources to clips. One per worker: fetch, find shots, cut, measure the cheap signals, encode.

    Work on clips that exist (another layer, a newer annotator) starts here as well: their bytes come from the shard.
    """

    def __init__(self, blueprint: Blueprint, out: Folder, attempts: Attempts) -> None:
        process.prepare()
        limits = blueprint.recipe.limits
        self._blueprint, self._out, self._attempts = blueprint, out, attempts
        self._sandbox = Sandbox(limits.memory_mb, limits.stall_s)
        self._scratch = Scratch()
        self._detector = shots.make_detector(blueprint.recipe.shots)
        self._first = AnnotateStage(blueprint, 0, attempts)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for work in batch.to_pylist():
            stored = json.loads(work["clip"]) if work["clip"] else None
            made = self._load(json.loads(work["manifest"]) | stored) if stored else self._source(work)
            for item in made:
                if item.record.pop("elsewhere", False) or self._first.annotate(item):
                    yield item.table()

    def _load(self, clip: dict[str, Any]) -> Iterator[Item]:
        """A stored clip, ready to be annotated anew. Should that fail, its row still says where the old sample lies."""
        unit = f"stored clip {clip['clip_id']}"
        go = self._attempts.begin(unit)
        if go == "stop":
            return
        drop = {"lineage"} if self._blueprint.layer == BASE_LAYER else {"lineage", *PLACE}
        item = Item({name: value for name, value in clip.items() if name not in drop})
        died = Failure(ErrorCode.WORKER_DIED, "every worker that opened this clip died while at it")
        failure = died if go == "dead" else attempt(ErrorCode.STORAGE_ERROR, lambda: self._reopen(item, clip))
        if isinstance(failure, Failure):
            item.fail(failure, "load")
        yield item
        self._attempts.end(unit)

    def _reopen(self, item: Item, clip: dict[str, Any]) -> None:
        sample = shards.read_sample(self._out, clip["clip_id"], clip["shard"], clip["offset"], clip["bytes"])
        if self._blueprint.layer != BASE_LAYER:
            item.members |= sample
            item.record["lineage"] = [made for made in self._blueprint.lineage if made["name"] != self._blueprint.layer]
        else:
            item.members["mp4"] = sample["mp4"]
            frames = decode_clip(sample["mp4"])
            item.preview = sandboxed.strip(frames)
            # What a filter of today's version measured on the source's own frames stands.
            made = self._blueprint.select_lineage([*self._blueprint.filters])
            new = tuple(entry["name"] for entry in made if entry not in clip["lineage"])
            item.record |= sandboxed.measure(frames, self._blueprint.recipe.grid.fps, new)
            item.record["lineage"] = made

    def _source(self, work: dict[str, Any]) -> Iterator[Item]:
        """One source; tried again, as after the death of this worker, when only its decoder was killed."""
        unit = _unit(work["uri"])
        known = json.loads(work["known"]) if work["known"] else None
        manifest = json.loads(work["manifest"])
        base = {"source_uri": work["uri"], "source_size": work["size"], "source_stamp": work["stamp"], **manifest}
        source = Source(work["uri"], work["size"], work["stamp"], manifest, work["content"])
        while (go := self._attempts.begin(unit)) == "go":
            try:
                yield from self._try(source, dict(base), known)
            except _KilledError:
                time.sleep(_PAUSE_S)
            else:
                self._attempts.end(unit)
                return
        if go == "dead":
            failure = Failure(ErrorCode.WORKER_DIED, "every worker that took this source died while at it")
            yield from _failed_source(base, known, failure, "cut")

    def _try(self, source: Source, base: dict[str, Any], known: dict[str, Any] | None) -> Iterator[Item]:
        started = time.perf_counter()
        fetched = attempt(ErrorCode.SOURCE_UNREADABLE, lambda: fetch_source(source, self._scratch.path))
        if isinstance(fetched, Failure):
            yield from _failed_source(base, known, fetched, "fetch")
            return
        try:
            yield from self._cut(base, fetched, known, {"fetch": time.perf_counter() - started})
        finally:
            fetched.discard()

    def _cut(
        self, base: dict[str, Any], fetched: LocalFile, known: dict[str, Any] | None, timings: dict[str, float]
    ) -> Iterator[Item]:
        base["source_hash"] = fetched.sha256
        for column, value in (("source_size", fetched.size), ("source_stamp", fetched.stamp)):
            # What the listing said is what the next listing will be held against.
            base[column] = value if base[column] is None else base[column]
        if known and known["row"]["source_hash"] == fetched.sha256:
            row = known["row"] | base
            base |= {name: row[name] for name in row if name.startswith("source_")}
            windows, box = _windows(known["missing"]), row["content_box"]
            yield _source_item(row, {})
        else:
            owner = self._attempts.claim(fetched.sha256, base["source_uri"])
            if owner != base["source_uri"]:
                status = {"status": "same", "same_as": owner} if owner else {"status": "forgotten"}
                yield _source_item(base, status | {"timings": timings})
                return
            scanned = attempt(ErrorCode.INTERNAL_ERROR, lambda: self._scan(fetched, timings))
            if isinstance(scanned, Failure):
                _check_killed(scanned)
                yield _source_item(base, failed(scanned, "scan"))
                return
            found, windows = scanned
            base |= {name: found[name] for name in found if name.startswith("source_")}
            box = found["content_box"]
            yield _source_item(base, found | {"timings": timings})
        size = self._blueprint.recipe.grid.size(*_shape(base, box))
        if not windows or size is None:
            return
        base |= {"width": size[0], "height": size[1], "fps": self._blueprint.recipe.grid.fps}
        work = self._sandbox.stream(
            "pipeline.stages.sandboxed:clips", fetched.path, windows, size, box, base, self._blueprint
        )
        left, unit = list(windows), _unit(base["source_uri"])
        while left:
            cut: sandboxed.Cut | Failure | None = attempt(ErrorCode.INTERNAL_ERROR, lambda: self._next(work, fetched))
            if cut is None:
                cut = Failure(ErrorCode.INTERNAL_ERROR, "the source ended before this clip")
            if isinstance(cut, Failure):
                _check_killed(cut)
                yield from (_failed_clip(base, window, cut, "cut") for window in left)
                return
            left.pop(0)
            lineage = self._blueprint.select_lineage([*self._blueprint.filters])
            record = base | cut.values | {"timings": cut.timings, "lineage": lineage}
            record["elsewhere"] = len(windows) > FEW
            # Should this worker die while it annotates the clip, the source is not to blame.
            self._attempts.end(unit)
            yield Item(record, {"mp4": cut.mp4} if cut.mp4 else {}, cut.preview)
            if self._attempts.begin(unit) != "go":
                return
        if not left:
            # To its end, or the child would be taken for abandoned; what a file holds after its last clip is not asked.
            attempt(ErrorCode.INTERNAL_ERROR, lambda: next(work, None))

    def _next(self, work: Iterator[sandboxed.Cut], fetched: LocalFile) -> sandboxed.Cut | None:
        cut = next(work, None)
        # A clip of other bytes must not be stored under the id of these.
        fetched.check_unchanged()
        return cut

    def _scan(self, fetched: LocalFile, timings: dict[str, float]) -> tuple[dict[str, Any], list[Window]]:
        """Shots and windows of a source never seen before, as columns of its row."""
        grid, recipe = self._blueprint.recipe.grid, self._blueprint.recipe
        parts: list[tuple[NDArray[np.float64], NDArray[np.bool_]]] = []
        end: sandboxed.Scanned | None = None
        # The detector takes the pictures as they come, so that none is kept: its time is what passes between them.
        detecting = since = 0.0

        def pictures() -> Iterator[Frames]:
            nonlocal end, detecting, since
            for found in self._sandbox.stream("pipeline.stages.sandboxed:scan", fetched.path, self._blueprint):
                if isinstance(found, sandboxed.Scanned):
                    end = found
                    continue
                parts.append((found.times, found.joined))
                since = time.process_time()
                yield found.pictures
                detecting += time.process_time() - since
            since = time.process_time()

        ranges = self._detector(pictures())
        assert end is not None
        fetched.check_unchanged()
        times, joined = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        found_shots = shots_of(ranges, times, end.end_s, joined)
        timings |= {"scan": end.seconds, "shots": detecting + time.process_time() - since}
        probe = end.probe
        row: dict[str, Any] = {
            "source_width": probe.display.width,
            "source_height": probe.display.height,
            "source_fps": 1 / typical_step(times, end.end_s),
            "source_frames": end.tally.decoded,
            "source_frames_unused": end.tally.unused,
            "source_frames_missing": count_missing_frames(times),
            "source_duration_s": end.end_s - float(times[0]),
            "source_codec": probe.codec,
            "detector": f"{self._detector.name} {self._detector.version}",
            "content_box": list(end.box) if end.box else None,
            "shots": [{"first": s.first, "last": s.last, "start_s": s.start_s, "end_s": s.end_s} for s in found_shots],
            "windows": [],
        }
        if grid.size(*_shape(row, row["content_box"])) is None:
            return row | {
                "status": "rejected",
                "rule": "too_small",
                "detail": f"a side is under {grid.multiple} px, or the picture too long and thin",
            }, []
        windows = grid.windows(fetched.sha256, found_shots, times, recipe.crop_bars)
        if not windows:
            longest = max((shot.end_s - shot.start_s for shot in found_shots), default=0.0)
            least = (grid.min_frames - 1) / grid.fps
            detail = f"the longest shot lasts {longest:.2f} s; {grid.min_frames} frames need {least:.2f} s"
            return row | {"status": "rejected", "rule": "too_short", "detail": detail}, []
        row["windows"] = [{"clip_id": w.clip_id, **_span(w), "frames": w.frames} for w in windows]
        return row | {"status": "cut"}, windows


def _unit(uri: str) -> str:
    """What attempts on a source are counted under."""
    return f"source {uri}"


def _check_killed(failure: Failure) -> None:
    if failure.code == ErrorCode.WORKER_DIED:
        raise _KilledError


def _shape(row: dict[str, Any], box: list[int] | None) -> tuple[int, int]:
    return (box[2] - box[0], box[3] - box[1]) if box else (row["source_width"], row["source_height"])


def _span(window: Window) -> dict[str, Any]:
    return {"start_s": window.start_s, "end_s": window.end_s}


def _windows(rows: list[dict[str, Any]]) -> list[Window]:
    return [Window(row["clip_id"], row["start_s"], row["end_s"], row["frames"]) for row in rows]


def _failed_clip(base: dict[str, Any], window: Window, failure: Failure, stage: str) -> Item:
    span = {"clip_id": window.clip_id, **_span(window), "frames": window.frames}
    return Item(base | span | failed(failure, stage))


def _failed_source(base: dict[str, Any], known: dict[str, Any] | None, failure: Failure, stage: str) -> Iterator[Item]:
    """A source that cannot be had now. What an earlier run found out about it stands; its missing clips have failed."""
    if known is None:
        yield _source_item(base, failed(failure, stage))
        return
    base |= known["row"]
    yield _source_item(base, {})
    for window in _windows(known["missing"]):
        yield _failed_clip({name: base[name] for name in base if name.startswith("source_")}, window, failure, stage)


def _source_item(base: dict[str, Any], found: dict[str, Any]) -> Item:
    return Item({"kind": "source", **base, **found})
