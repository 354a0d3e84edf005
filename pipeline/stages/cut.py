"""The first stage of the Ray plan: cuts sources into clips, encodes and filters them, and annotates them if few.

An error in one source or clip becomes its verdict here (`errors.attempt`); only `RunError` is raised.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from annotators.base import Frames
from pipeline.attempts import Attempts, Permission, describe_deaths
from pipeline.errors import ErrorCode, Failure, attempt
from pipeline.formats import shards
from pipeline.formats.clip_decode import decode_clip
from pipeline.formats.records import (
    ClipRecord,
    SourceRecord,
    VerdictColumns,
    WindowColumns,
    begin_clip,
    source_columns,
)
from pipeline.formats.schema import BASE_LAYER, PLACE, Status
from pipeline.recipe.blueprint import Blueprint
from pipeline.sources.expand import Source
from pipeline.sources.fetch import LocalFile, fetch_source
from pipeline.sources.work import ClipWork, EarlierCut, SourceWork, read_work
from pipeline.stages import sandboxed
from pipeline.stages.annotate import AnnotateStage
from pipeline.stages.item import ClipItem, Item, SourceItem, failure_columns, to_table
from pipeline.storage.folder import Folder
from pipeline.storage.scratch import Scratch
from pipeline.video import process, shots
from pipeline.video.grid import Window, count_missing_frames, shots_of, typical_step
from pipeline.video.sandbox import Sandbox

# What killed the decoder (an out-of-memory killer, a shutdown) may kill this worker next: its last error must not
# become a verdict.
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
        # Clips that are annotated together are gathered by a pool of their own.
        self._first_stage = AnnotateStage(blueprint, 0, attempts) if blueprint.clips_per_call(0) == 1 else None

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for work in read_work(batch):
            items = self._load_clip(work) if isinstance(work, ClipWork) else self._process_source(work)
            for item in items:
                yield to_table(item)

    def _load_clip(self, work: ClipWork) -> Iterator[Item]:
        """A stored clip, annotated again. If that fails, its row still says where the old sample is."""
        unit = f"stored clip {work.record['clip_id']}"
        permission = self._attempts.begin(unit)
        if permission is Permission.STOP:
            return
        dropped = {"lineage"} if self._blueprint.layer == BASE_LAYER else {"lineage", *PLACE, "crc32"}
        record = {name: value for name, value in work.record.items() if name not in dropped}
        item = ClipItem(cast("ClipRecord", record), work.manifest, work.signals)
        failure = (
            describe_deaths("opened this clip")
            if permission is Permission.DEAD
            else attempt(ErrorCode.STORAGE_ERROR, lambda: self._reopen_sample(item, work.record))
        )
        if isinstance(failure, Failure):
            item.fail(failure, "load")
        yield from self._annotate_here(item)
        self._attempts.end(unit)

    def _annotate_here(self, item: ClipItem) -> Iterator[ClipItem]:
        return iter([item]) if self._first_stage is None else self._first_stage.annotate([item])

    def _reopen_sample(self, item: ClipItem, clip: ClipRecord) -> None:
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
            item.signals |= sandboxed.measure(frames, self._blueprint.recipe.grid.fps, changed)
            item.record["lineage"] = lineage

    def _process_source(self, work: SourceWork) -> Iterator[Item]:
        """One source; tried again when its decoder was killed, as after the death of this worker."""
        source, earlier = work.source, work.earlier
        unit = _source_unit(source.uri)
        listed_record: SourceRecord = {
            "source_uri": source.uri,
            "source_size": source.size,
            "source_stamp": source.stamp,
        }
        while (permission := self._attempts.begin(unit)) is Permission.GO:
            try:
                yield from self._try_source(source, listed_record.copy(), earlier)
            except _KilledError:
                time.sleep(_PAUSE_S)
            else:
                self._attempts.end(unit)
                return
        if permission is Permission.DEAD:
            failure = describe_deaths("cut this source")
            yield from _fail_source(listed_record, source.manifest, earlier, failure, "cut")

    def _try_source(self, source: Source, listed_record: SourceRecord, earlier: EarlierCut | None) -> Iterator[Item]:
        started = time.perf_counter()
        fetched = attempt(ErrorCode.SOURCE_UNREADABLE, lambda: fetch_source(source, self._scratch.path))
        if isinstance(fetched, Failure):
            yield from _fail_source(listed_record, source.manifest, earlier, fetched, "fetch")
            return
        try:
            timings = {"fetch": time.perf_counter() - started}
            yield from self._cut_source(listed_record, source.manifest, fetched, earlier, timings)
        finally:
            fetched.discard()

    def _cut_source(
        self,
        listed_record: SourceRecord,
        manifest: Mapping[str, str],
        fetched: LocalFile,
        earlier: EarlierCut | None,
        timings: dict[str, float],
    ) -> Iterator[Item]:
        listed_record["source_hash"] = fetched.sha256
        # The next listing will be compared with what this listing said.
        if listed_record["source_size"] is None:
            listed_record["source_size"] = fetched.size
        if listed_record["source_stamp"] is None:
            listed_record["source_stamp"] = fetched.stamp
        record: SourceRecord
        if earlier and earlier["row"]["source_hash"] == fetched.sha256:
            record = {**earlier["row"], **listed_record}
            windows = _parse_windows(earlier["missing"])
        else:
            owner = self._attempts.claim(fetched.sha256, listed_record["source_uri"])
            if owner != listed_record["source_uri"]:
                record = {**listed_record, "status": Status.FORGOTTEN, "timings": timings}
                if owner:
                    record.update({"status": Status.SAME, "same_as": owner})
                yield SourceItem(record, manifest)
                return
            scanned = attempt(ErrorCode.INTERNAL_ERROR, lambda: self._scan_source(listed_record, fetched, timings))
            if isinstance(scanned, Failure):
                _check_killed(scanned)
                yield SourceItem({**listed_record, **failure_columns(scanned, "scan")}, manifest)
                return
            record, windows = scanned
        yield SourceItem(record, manifest)
        source, box = source_columns(record), record["content_box"]
        size = self._blueprint.recipe.grid.size(*_picture_shape(record))
        if not windows or size is None:
            return
        (width, height), fps = size, self._blueprint.recipe.grid.fps

        def start_clip(window: Window) -> ClipRecord:
            return {**begin_clip(source, _window_columns(window)), "width": width, "height": height, "fps": fps}

        columns: dict[str, object] = {**manifest, **source, "width": width, "height": height, "fps": fps}
        cuts = self._sandbox.stream(
            "pipeline.stages.sandboxed:cut_clips", fetched.path, windows, size, box, columns, self._blueprint
        )
        remaining, unit = list(windows), _source_unit(listed_record["source_uri"])
        while remaining:
            cut: sandboxed.Cut | Failure | None = attempt(
                ErrorCode.INTERNAL_ERROR, lambda: self._next_cut(cuts, fetched)
            )
            if cut is None:
                cut = Failure(ErrorCode.INTERNAL_ERROR, "the source ended before this clip")
            if isinstance(cut, Failure):
                _check_killed(cut)
                verdict = failure_columns(cut, "cut")
                yield from (ClipItem({**start_clip(window), **verdict}, manifest) for window in remaining)
                return
            remaining.pop(0)
            clip: ClipRecord = {**start_clip(cut.window), **cut.verdict, "timings": cut.timings}
            clip["lineage"] = self._blueprint.select_lineage([*self._blueprint.filters])
            item = ClipItem(clip, manifest, cut.signals, {"mp4": cut.mp4} if cut.mp4 else {}, cut.preview)
            # If this worker dies while it annotates the clip, the source is not to blame.
            self._attempts.end(unit)
            yield from [item] if len(windows) > MAX_LOCAL_CLIPS else self._annotate_here(item)
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

    def _scan_source(
        self, listed_record: SourceRecord, fetched: LocalFile, timings: dict[str, float]
    ) -> tuple[SourceRecord, list[Window]]:
        """The row of a source never seen before, with its shots, and the windows of its clips."""
        grid, recipe = self._blueprint.recipe.grid, self._blueprint.recipe
        parts: list[tuple[NDArray[np.float64], NDArray[np.bool_]]] = []
        result: sandboxed.ScanResult | None = None
        # The detector takes the pictures as they come, so that none is kept. Its time is measured between two chunks.
        detector_s = detector_started = 0.0

        def pictures() -> Iterator[Frames]:
            nonlocal result, detector_s, detector_started
            for piece in self._sandbox.stream("pipeline.stages.sandboxed:scan", fetched.path, self._blueprint):
                if isinstance(piece, sandboxed.ScanResult):
                    result = piece
                    continue
                parts.append((piece.times, piece.joined))
                detector_started = time.process_time()
                yield piece.pictures
                detector_s += time.process_time() - detector_started
            detector_started = time.process_time()

        ranges = self._detector(pictures())
        assert result is not None
        fetched.check_unchanged()
        times, joined = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        shot_list = shots_of(ranges, times, result.end_s, joined)
        timings |= {"scan": result.seconds, "shots": detector_s + time.process_time() - detector_started}
        probe = result.probe
        record: SourceRecord = {
            **listed_record,
            "timings": timings,
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
        verdict: VerdictColumns
        if grid.size(*_picture_shape(record)) is None:
            detail = f"a side is under {grid.multiple} px, or the picture too long and thin"
            verdict = {"status": Status.REJECTED, "rule": "too_small", "detail": detail}
            return {**record, **verdict}, []
        windows = grid.windows(fetched.sha256, shot_list, times, recipe.crop_bars)
        if not windows:
            longest_s = max((shot.end_s - shot.start_s for shot in shot_list), default=0.0)
            needed_s = (grid.min_frames - 1) / grid.fps
            detail = f"the longest shot lasts {longest_s:.2f} s; {grid.min_frames} frames need {needed_s:.2f} s"
            verdict = {"status": Status.REJECTED, "rule": "too_short", "detail": detail}
            return {**record, **verdict}, []
        record["windows"] = [_window_columns(window) for window in windows]
        record["status"] = Status.CUT
        return record, windows


def _source_unit(uri: str) -> str:
    """The unit under which attempts on a source are counted."""
    return f"source {uri}"


def _check_killed(failure: Failure) -> None:
    if failure.code == ErrorCode.WORKER_DIED:
        raise _KilledError


def _picture_shape(record: SourceRecord) -> tuple[int, int]:
    """Width and height of a source's picture, without its bars if they are cut off."""
    box = record["content_box"]
    return (box[2] - box[0], box[3] - box[1]) if box else (record["source_width"], record["source_height"])


def _window_columns(window: Window) -> WindowColumns:
    return {"clip_id": window.clip_id, "start_s": window.start_s, "end_s": window.end_s, "frames": window.frames}


def _parse_windows(rows: list[WindowColumns]) -> list[Window]:
    return [Window(row["clip_id"], row["start_s"], row["end_s"], row["frames"]) for row in rows]


def _fail_source(
    listed_record: SourceRecord, manifest: Mapping[str, str], earlier: EarlierCut | None, failure: Failure, stage: str
) -> Iterator[Item]:
    """A source that is not available now. What an earlier run learned of it stands; its missing clips have failed."""
    if earlier is None:
        yield SourceItem({**listed_record, **failure_columns(failure, stage)}, manifest)
        return
    record: SourceRecord = {**listed_record, **earlier["row"]}
    yield SourceItem(record, manifest)
    for window in earlier["missing"]:
        yield ClipItem({**begin_clip(source_columns(record), window), **failure_columns(failure, stage)})
