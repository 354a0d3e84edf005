"""The first stage of the Ray plan: cuts sources into clips, encodes and filters them, and annotates them if few.

An error in one source or clip becomes its verdict here (`errors.attempt`); only `RunError` is raised.
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
from pipeline.attempts import Attempts, Permission
from pipeline.errors import ErrorCode, Failure, attempt
from pipeline.formats import shards
from pipeline.formats.clip_decode import decode_clip
from pipeline.formats.schema import BASE_LAYER, PLACE, Kind, Status
from pipeline.recipe.blueprint import Blueprint
from pipeline.sources.expand import Source
from pipeline.sources.fetch import LocalFile, fetch_source
from pipeline.stages import sandboxed
from pipeline.stages.annotate import AnnotateStage
from pipeline.stages.item import Item, failure_columns
from pipeline.storage.folder import Folder
from pipeline.storage.scratch import Scratch
from pipeline.video import process, shots
from pipeline.video.grid import Window, count_missing_frames, shots_of, typical_step
from pipeline.video.sandbox import Sandbox

# Whoever kills the decoder may be about to kill this worker too: its last error must not become a verdict.
_PAUSE_S = 1.0
# The clips of a source that has no more than this many are annotated by the worker that cut them, which saves a trip
# through Ray and a second process on a core; those of a longer source are spread over the cluster.
MAX_LOCAL_CLIPS = 4


class _KilledError(Exception):
    """The decoder was killed, and the source is not to blame."""


class CutStage:
    """Sources to clips. One per worker: fetch, find shots, cut, measure the cheap signals, encode.

    Work on stored clips (another layer, a newer annotator) starts here as well: their bytes come from the shard.
    """

    def __init__(self, blueprint: Blueprint, out: Folder, attempts: Attempts) -> None:
        process.prepare()
        limits = blueprint.recipe.limits
        self._blueprint, self._out, self._attempts = blueprint, out, attempts
        self._sandbox = Sandbox(limits.memory_mb, limits.stall_s)
        self._scratch = Scratch()
        self._detector = shots.make_detector(blueprint.recipe.shots)
        self._first_stage = AnnotateStage(blueprint, 0, attempts)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for work in batch.to_pylist():
            stored = json.loads(work["clip"]) if work["clip"] else None
            items = self._load_clip(json.loads(work["manifest"]) | stored) if stored else self._process_source(work)
            for item in items:
                if item.record.pop("elsewhere", False) or self._first_stage.annotate(item):
                    yield item.to_table()

    def _load_clip(self, clip: dict[str, Any]) -> Iterator[Item]:
        """A stored clip, ready to be annotated again. If that fails, its row still says where the old sample is."""
        unit = f"stored clip {clip['clip_id']}"
        permission = self._attempts.begin(unit)
        if permission is Permission.STOP:
            return
        dropped = {"lineage"} if self._blueprint.layer == BASE_LAYER else {"lineage", *PLACE}
        item = Item({name: value for name, value in clip.items() if name not in dropped})
        death = Failure(ErrorCode.WORKER_DIED, "every worker that opened this clip died while at it")
        failure = (
            death
            if permission is Permission.DEAD
            else attempt(ErrorCode.STORAGE_ERROR, lambda: self._reopen_sample(item, clip))
        )
        if isinstance(failure, Failure):
            item.fail(failure, "load")
        yield item
        self._attempts.end(unit)

    def _reopen_sample(self, item: Item, clip: dict[str, Any]) -> None:
        sample = shards.read_sample(self._out, clip["clip_id"], clip["shard"], clip["offset"], clip["bytes"])
        if self._blueprint.layer != BASE_LAYER:
            item.members |= sample
            item.record["lineage"] = [
                entry for entry in self._blueprint.lineage if entry["name"] != self._blueprint.layer
            ]
        else:
            item.members["mp4"] = sample["mp4"]
            frames = decode_clip(sample["mp4"])
            item.preview = sandboxed.make_strip(frames)
            # Values measured on the source's own frames by a filter's current version stay.
            lineage = self._blueprint.select_lineage([*self._blueprint.filters])
            changed = tuple(entry["name"] for entry in lineage if entry not in clip["lineage"])
            item.record |= sandboxed.measure(frames, self._blueprint.recipe.grid.fps, changed)
            item.record["lineage"] = lineage

    def _process_source(self, work: dict[str, Any]) -> Iterator[Item]:
        """One source; tried again when its decoder was killed, as after the death of this worker."""
        unit = _source_unit(work["uri"])
        earlier = json.loads(work["known"]) if work["known"] else None
        manifest = json.loads(work["manifest"])
        base = {"source_uri": work["uri"], "source_size": work["size"], "source_stamp": work["stamp"], **manifest}
        source = Source(work["uri"], work["size"], work["stamp"], manifest, work["content"])
        while (permission := self._attempts.begin(unit)) is Permission.GO:
            try:
                yield from self._try_source(source, dict(base), earlier)
            except _KilledError:
                time.sleep(_PAUSE_S)
            else:
                self._attempts.end(unit)
                return
        if permission is Permission.DEAD:
            failure = Failure(ErrorCode.WORKER_DIED, "every worker that took this source died while at it")
            yield from _fail_source(base, earlier, failure, "cut")

    def _try_source(self, source: Source, base: dict[str, Any], earlier: dict[str, Any] | None) -> Iterator[Item]:
        started = time.perf_counter()
        fetched = attempt(ErrorCode.SOURCE_UNREADABLE, lambda: fetch_source(source, self._scratch.path))
        if isinstance(fetched, Failure):
            yield from _fail_source(base, earlier, fetched, "fetch")
            return
        try:
            yield from self._cut_source(base, fetched, earlier, {"fetch": time.perf_counter() - started})
        finally:
            fetched.discard()

    def _cut_source(
        self, base: dict[str, Any], fetched: LocalFile, earlier: dict[str, Any] | None, timings: dict[str, float]
    ) -> Iterator[Item]:
        base["source_hash"] = fetched.sha256
        for column, value in (("source_size", fetched.size), ("source_stamp", fetched.stamp)):
            # The next listing will be compared with what this listing said.
            base[column] = value if base[column] is None else base[column]
        if earlier and earlier["row"]["source_hash"] == fetched.sha256:
            row = earlier["row"] | base
            base |= {name: row[name] for name in row if name.startswith("source_")}
            windows, box = _parse_windows(earlier["missing"]), row["content_box"]
            yield _make_source_item(row, {})
        else:
            owner = self._attempts.claim(fetched.sha256, base["source_uri"])
            if owner != base["source_uri"]:
                status = {"status": Status.SAME, "same_as": owner} if owner else {"status": Status.FORGOTTEN}
                yield _make_source_item(base, status | {"timings": timings})
                return
            scanned = attempt(ErrorCode.INTERNAL_ERROR, lambda: self._scan_source(fetched, timings))
            if isinstance(scanned, Failure):
                _check_killed(scanned)
                yield _make_source_item(base, failure_columns(scanned, "scan"))
                return
            columns, windows = scanned
            base |= {name: columns[name] for name in columns if name.startswith("source_")}
            box = columns["content_box"]
            yield _make_source_item(base, columns | {"timings": timings})
        size = self._blueprint.recipe.grid.size(*_picture_shape(base, box))
        if not windows or size is None:
            return
        base |= {"width": size[0], "height": size[1], "fps": self._blueprint.recipe.grid.fps}
        cuts = self._sandbox.stream(
            "pipeline.stages.sandboxed:cut_clips", fetched.path, windows, size, box, base, self._blueprint
        )
        remaining, unit = list(windows), _source_unit(base["source_uri"])
        while remaining:
            cut: sandboxed.Cut | Failure | None = attempt(
                ErrorCode.INTERNAL_ERROR, lambda: self._next_cut(cuts, fetched)
            )
            if cut is None:
                cut = Failure(ErrorCode.INTERNAL_ERROR, "the source ended before this clip")
            if isinstance(cut, Failure):
                _check_killed(cut)
                yield from (_make_failed_clip(base, window, cut, "cut") for window in remaining)
                return
            remaining.pop(0)
            lineage = self._blueprint.select_lineage([*self._blueprint.filters])
            record = base | cut.values | {"timings": cut.timings, "lineage": lineage}
            record["elsewhere"] = len(windows) > MAX_LOCAL_CLIPS
            # If this worker dies while it annotates the clip, the source is not to blame.
            self._attempts.end(unit)
            yield Item(record, {"mp4": cut.mp4} if cut.mp4 else {}, cut.preview)
            if self._attempts.begin(unit) is not Permission.GO:
                return
        if not remaining:
            # To its end, or the child would be taken for abandoned; errors after the last clip do not matter.
            attempt(ErrorCode.INTERNAL_ERROR, lambda: next(cuts, None))

    def _next_cut(self, cuts: Iterator[sandboxed.Cut], fetched: LocalFile) -> sandboxed.Cut | None:
        cut = next(cuts, None)
        # A clip of other bytes must not be stored under the id of these.
        fetched.check_unchanged()
        return cut

    def _scan_source(self, fetched: LocalFile, timings: dict[str, float]) -> tuple[dict[str, Any], list[Window]]:
        """Shots and windows of a source never seen before, as columns of its row."""
        grid, recipe = self._blueprint.recipe.grid, self._blueprint.recipe
        parts: list[tuple[NDArray[np.float64], NDArray[np.bool_]]] = []
        result: sandboxed.ScanResult | None = None
        # The detector takes the pictures as they come, so that none is kept: its time is what passes between them.
        detecting = since = 0.0

        def pictures() -> Iterator[Frames]:
            nonlocal result, detecting, since
            for piece in self._sandbox.stream("pipeline.stages.sandboxed:scan", fetched.path, self._blueprint):
                if isinstance(piece, sandboxed.ScanResult):
                    result = piece
                    continue
                parts.append((piece.times, piece.joined))
                since = time.process_time()
                yield piece.pictures
                detecting += time.process_time() - since
            since = time.process_time()

        ranges = self._detector(pictures())
        assert result is not None
        fetched.check_unchanged()
        times, joined = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        shot_list = shots_of(ranges, times, result.end_s, joined)
        timings |= {"scan": result.seconds, "shots": detecting + time.process_time() - since}
        probe = result.probe
        row: dict[str, Any] = {
            "source_width": probe.display.width,
            "source_height": probe.display.height,
            "source_fps": 1 / typical_step(times, result.end_s),
            "source_frames": result.tally.decoded,
            "source_frames_unused": result.tally.unused,
            "source_frames_missing": count_missing_frames(times),
            "source_duration_s": result.end_s - float(times[0]),
            "source_codec": probe.codec,
            "detector": f"{self._detector.name} {self._detector.version}",
            "content_box": list(result.box) if result.box else None,
            "shots": [
                {"first": shot.first, "last": shot.last, "start_s": shot.start_s, "end_s": shot.end_s}
                for shot in shot_list
            ],
            "windows": [],
        }
        if grid.size(*_picture_shape(row, row["content_box"])) is None:
            return row | {
                "status": Status.REJECTED,
                "rule": "too_small",
                "detail": f"a side is under {grid.multiple} px, or the picture too long and thin",
            }, []
        windows = grid.windows(fetched.sha256, shot_list, times, recipe.crop_bars)
        if not windows:
            longest_s = max((shot.end_s - shot.start_s for shot in shot_list), default=0.0)
            needed_s = (grid.min_frames - 1) / grid.fps
            detail = f"the longest shot lasts {longest_s:.2f} s; {grid.min_frames} frames need {needed_s:.2f} s"
            return row | {"status": Status.REJECTED, "rule": "too_short", "detail": detail}, []
        row["windows"] = [
            {"clip_id": window.clip_id, **_window_span(window), "frames": window.frames} for window in windows
        ]
        return row | {"status": Status.CUT}, windows


def _source_unit(uri: str) -> str:
    """The unit under which attempts on a source are counted."""
    return f"source {uri}"


def _check_killed(failure: Failure) -> None:
    if failure.code == ErrorCode.WORKER_DIED:
        raise _KilledError


def _picture_shape(row: dict[str, Any], box: list[int] | None) -> tuple[int, int]:
    return (box[2] - box[0], box[3] - box[1]) if box else (row["source_width"], row["source_height"])


def _window_span(window: Window) -> dict[str, Any]:
    return {"start_s": window.start_s, "end_s": window.end_s}


def _parse_windows(rows: list[dict[str, Any]]) -> list[Window]:
    return [Window(row["clip_id"], row["start_s"], row["end_s"], row["frames"]) for row in rows]


def _make_failed_clip(base: dict[str, Any], window: Window, failure: Failure, stage: str) -> Item:
    span = {"clip_id": window.clip_id, **_window_span(window), "frames": window.frames}
    return Item(base | span | failure_columns(failure, stage))


def _fail_source(base: dict[str, Any], earlier: dict[str, Any] | None, failure: Failure, stage: str) -> Iterator[Item]:
    """A source that is not available now. What an earlier run learned of it stands; its missing clips have failed."""
    if earlier is None:
        yield _make_source_item(base, failure_columns(failure, stage))
        return
    base |= earlier["row"]
    yield _make_source_item(base, {})
    for window in _parse_windows(earlier["missing"]):
        yield _make_failed_clip(
            {name: base[name] for name in base if name.startswith("source_")}, window, failure, stage
        )


def _make_source_item(base: dict[str, Any], columns: dict[str, Any]) -> Item:
    return Item({"kind": Kind.SOURCE, **base, **columns})
