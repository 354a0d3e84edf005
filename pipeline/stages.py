"""The stages of the Ray plan: actors that turn work into clips and clips into annotated samples, and the shard writer.

Every stage takes and gives `Item` rows. A row with a status is settled and passes through. Whatever goes wrong with
one source or clip becomes its verdict here (`errors.attempt`); only `RunError` leaves.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from annotators.base import Annotation, Annotator, Frames
from pipeline import cutting, encode, registry, shards, shots
from pipeline.blueprint import Blueprint
from pipeline.errors import ClipError, ErrorCode, Failure, attempt
from pipeline.fetch import Fetched, Scratch, fetch
from pipeline.grid import Window, shots_of
from pipeline.items import Item, items, records
from pipeline.sandbox import Sandbox
from pipeline.schema import BASE_LAYER, PLACE
from pipeline.sources import Source
from pipeline.storage import Folder
from pipeline.watch import WatchClient


class CutStage:
    """Sources to clips. One per worker: fetch, find shots, cut, measure the cheap signals, encode.

    Work on clips that exist (another layer, a newer annotator) starts here as well: their bytes come from the shard.
    """

    def __init__(self, blueprint: Blueprint, out: Folder, watch: Any) -> None:
        _one_thread()
        limits = blueprint.recipe.limits
        self._blueprint, self._out, self._watch = blueprint, out, WatchClient(watch)
        self._sandbox = Sandbox(limits.memory_mb, limits.stall_s)
        self._scratch = Scratch()
        self._detector = shots.detector(blueprint.recipe.shots)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for work in batch.to_pylist():
            stored = json.loads(work["clip"]) if work["clip"] else None
            made = self._load(json.loads(work["manifest"]) | stored) if stored else self._source(work)
            for item in made:
                yield item.table()

    def _load(self, clip: dict[str, Any]) -> Iterator[Item]:
        """A stored clip, ready to be annotated anew. Should that fail, its row still says where the old sample lies."""
        unit = f"stored clip {clip['clip_id']}"
        go = self._watch.begin(unit)
        if go == "stop":
            return
        drop = {"lineage"} if self._blueprint.layer == BASE_LAYER else {"lineage", *PLACE}
        item = Item({name: value for name, value in clip.items() if name not in drop})
        died = Failure(ErrorCode.WORKER_DIED, "every worker that opened this clip died while at it")
        failure = died if go == "dead" else attempt(ErrorCode.STORAGE_ERROR, lambda: self._reopen(item, clip))
        if isinstance(failure, Failure):
            _fail(item, failure, "load")
        yield item
        self._watch.end(unit)

    def _reopen(self, item: Item, clip: dict[str, Any]) -> None:
        sample = shards.sample(self._out, clip["clip_id"], clip["shard"], clip["offset"], clip["bytes"])
        item.members["mp4"] = sample["mp4"]
        if self._blueprint.layer == BASE_LAYER:
            frames = encode.decode(sample["mp4"])
            item.preview = cutting.strip(frames)
            # What a filter of today's version measured on the source's own frames stands.
            made = self._blueprint.made_by([*self._blueprint.filters])
            new = tuple(entry["name"] for entry in made if entry not in clip["lineage"])
            item.record |= cutting.measure(frames, self._blueprint.recipe.grid.fps, new)
            item.record["lineage"] = made

    def _source(self, work: dict[str, Any]) -> Iterator[Item]:
        started = time.perf_counter()
        unit = f"source {work['uri']}"
        go = self._watch.begin(unit)
        if go == "stop":
            return
        known = json.loads(work["known"]) if work["known"] else None
        manifest = json.loads(work["manifest"])
        base = {"source_uri": work["uri"], "source_size": work["size"], "source_stamp": work["stamp"], **manifest}
        if go == "dead":
            failure = Failure(ErrorCode.WORKER_DIED, "every worker that took this source died while at it")
            yield from _failed_source(base, known, failure, "cut")
            return
        source = Source(work["uri"], work["size"], work["stamp"], manifest, work["content"])
        fetched = attempt(ErrorCode.SOURCE_UNREADABLE, lambda: fetch(source, self._scratch.path))
        if isinstance(fetched, Failure):
            yield from _failed_source(base, known, fetched, "fetch")
        else:
            timings = {"fetch": time.perf_counter() - started}
            try:
                yield from self._cut(base, fetched, known, timings)
            finally:
                if self._scratch.path in fetched.path.parents:
                    fetched.path.unlink(missing_ok=True)
        self._watch.end(unit)

    def _cut(
        self, base: dict[str, Any], fetched: Fetched, known: dict[str, Any] | None, timings: dict[str, float]
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
            owner = self._watch.claim(fetched.sha256, base["source_uri"])
            if owner != base["source_uri"]:
                status = {"status": "same", "same_as": owner} if owner else {"status": "forgotten"}
                yield _source_item(base, status | {"timings": timings})
                return
            scanned = attempt(ErrorCode.INTERNAL_ERROR, lambda: self._scan(fetched.path, fetched.sha256, timings))
            if isinstance(scanned, Failure):
                yield _source_item(base, _failed(scanned, "scan"))
                return
            found, windows = scanned
            base |= {name: found[name] for name in found if name.startswith("source_")}
            box = found["content_box"]
            yield _source_item(base, found | {"timings": timings})
        size = self._blueprint.recipe.grid.size(*_shape(base, box))
        if not windows or size is None:
            return
        base |= {"width": size[0], "height": size[1], "fps": self._blueprint.recipe.grid.fps}
        work = self._sandbox.stream("pipeline.cutting:clips", fetched.path, windows, size, box, base, self._blueprint)
        left = list(windows)
        while left and not self._watch.stopping():
            cut: cutting.Cut | Failure | None = attempt(ErrorCode.INTERNAL_ERROR, lambda: next(work, None))
            if cut is None:
                cut = Failure(ErrorCode.INTERNAL_ERROR, "the source ended before this clip")
            if isinstance(cut, Failure):
                yield from (_failed_clip(base, window, cut, "cut") for window in left)
                return
            left.pop(0)
            lineage = self._blueprint.made_by([*self._blueprint.filters])
            record = base | cut.values | {"timings": cut.timings, "lineage": lineage}
            yield Item(record, {"mp4": cut.mp4} if cut.mp4 else {}, cut.preview)
        if not left:
            # To its end, or the child would be taken for abandoned; what a file holds after its last clip is not asked.
            attempt(ErrorCode.INTERNAL_ERROR, lambda: next(work, None))

    def _scan(self, path: Path, content: str, timings: dict[str, float]) -> tuple[dict[str, Any], list[Window]]:
        """Shots and windows of a source never seen before, as columns of its row."""
        grid, recipe = self._blueprint.recipe.grid, self._blueprint.recipe
        parts: list[NDArray[np.float64]] = []
        end: cutting.Scanned | None = None
        # The detector takes the pictures as they come, so that none is kept: its time is what passes between them.
        detecting = since = 0.0

        def pictures() -> Iterator[Frames]:
            nonlocal end, detecting, since
            for found in self._sandbox.stream("pipeline.cutting:scan", path, self._blueprint):
                if isinstance(found, cutting.Scanned):
                    end = found
                    continue
                parts.append(found.times)
                since = time.process_time()
                yield found.pictures
                detecting += time.process_time() - since
            since = time.process_time()

        ranges = self._detector(pictures())
        assert end is not None
        times = np.concatenate(parts)
        found_shots = shots_of(ranges, times, end.end_s)
        timings |= {"scan": end.seconds, "shots": detecting + time.process_time() - since}
        probe = end.probe
        row: dict[str, Any] = {
            "source_width": probe.width,
            "source_height": probe.height,
            "source_fps": (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else probe.fps,
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
                "detail": f"a side is under {grid.multiple} px",
            }, []
        windows = grid.windows(content, found_shots, times, recipe.crop_bars)
        if not windows:
            longest = max((shot.end_s - shot.start_s for shot in found_shots), default=0.0)
            least = (grid.min_frames - 1) / grid.fps
            detail = f"the longest shot lasts {longest:.2f} s; {grid.min_frames} frames need {least:.2f} s"
            return row | {"status": "rejected", "rule": "too_short", "detail": detail}, []
        row["windows"] = [{"clip_id": w.clip_id, **_span(w), "frames": w.frames} for w in windows]
        return row | {"status": "cut"}, windows


class AnnotateStage:
    """Clips to samples: one decode, then every annotator of this stage on the same frames."""

    def __init__(self, blueprint: Blueprint, number: int, watch: Any) -> None:
        """`number` counts the recipe's stages from 0; the last one gives the verdict."""
        _one_thread()
        self._blueprint, self._number, self._watch = blueprint, number, WatchClient(watch)
        self._annotators: list[Annotator] = [registry.annotator(name)() for name in blueprint.stages[number]]
        self._before = sum(len(stage) for stage in blueprint.stages[:number])
        self._rules = blueprint.rules()
        self._at = "decode"

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for item in items(batch):
            if "status" not in item.record:
                unit = f"stage {self._number} of clip {item.record['clip_id']}"
                go = self._watch.begin(unit)
                if go == "stop":
                    continue
                if go == "dead":
                    detail = f"every worker that annotated this clip ({', '.join(self._names())}) died while at it"
                    _fail(item, Failure(ErrorCode.WORKER_DIED, detail), f"stage {self._number}")
                else:
                    failure = attempt(ErrorCode.ANNOTATOR_ERROR, lambda item=item: self._annotate(item))  # type: ignore[misc]
                    if isinstance(failure, Failure):
                        _fail(item, failure, self._at)
                    self._watch.end(unit)
            yield item.table()

    def _names(self) -> list[str]:
        return [annotator.name for annotator in self._annotators]

    def _annotate(self, item: Item) -> None:
        record, recipe = item.record, self._blueprint.recipe
        timed = _Timer(record.setdefault("timings", {}))
        self._at = "decode"
        frames = encode.decode(item.members["mp4"])
        timed("redecode")
        data: dict[str, Any] = json.loads(item.members.get("json", b"{}"))
        for position, annotator in enumerate(self._annotators, self._before + 1):
            self._at = annotator.name
            found = _checked(annotator, frames, record["fps"])
            timed(annotator.name)
            for name, track in found.tracks.items():
                encoded = encode.encode(track, record["fps"], recipe.encode.crf, recipe.encode.preset)
                item.members[f"{name}.mp4"] = encoded
            timed("encode")
            record |= found.signals
            data |= found.data
            record["lineage"] = [*record.get("lineage", []), *self._blueprint.made_by([annotator.name])]
            verdict = self._rules.judge(record, position)
            settled = verdict.status == "rejected" and not recipe.score_all
            if settled:
                break
        item.members["json"] = json.dumps(data, allow_nan=False).encode()
        last = self._number == len(self._blueprint.stages) - 1
        if last or settled:
            self._finish(item, data)
            record |= {"status": verdict.status, "rule": verdict.rule, "detail": verdict.detail}
            if verdict.status == "rejected":
                item.members.clear()

    def _finish(self, item: Item, data: dict[str, Any]) -> None:
        """Give a clip its tasks and its JSON."""
        record = item.record
        record["tasks"] = self._rules.tasks(record)
        names = ("clip_id", "frames", "fps", "width", "height", "start_s", "end_s", "source_hash", "lineage")
        sample = {name: record[name] for name in names}
        sample["signals"] = {name: record.get(name) for name in sorted(self._blueprint.signals)}
        layer = self._blueprint.layer
        item.members["json"] = json.dumps(sample | data, sort_keys=True, separators=(",", ":")).encode()
        if layer != BASE_LAYER:
            # The clip itself is in the base layer, and two layers of one clip must not share a member's name.
            item.members[f"{layer}.json"] = item.members.pop("json")
            del item.members["mp4"]


def peek(table: pa.Table) -> list[dict[str, Any]]:
    """The records of a block, for the driver, which never sees the bytes."""
    return records(table)


def pack(out: Folder, run_id: str, layer: str, *tables: pa.Table) -> list[dict[str, Any]]:
    """Write settled items into shards and previews; returns their catalog rows, with where the bytes are.

    Kept clips go to shards/, pending ones to pending/, and those of a layer to layers/.
    """
    rows: list[dict[str, Any]] = []
    with Scratch() as scratch:
        folders = {"kept": "shards", "pending": "pending"} if layer == BASE_LAYER else {"kept": "layers"}
        made = {name: shards.ShardWriter(scratch.path, name, run_id) for name in (*folders.values(), "previews")}
        for item in (item for table in tables for item in items(table)):
            rows.append(item.record)
            if item.members and item.record["status"] in folders:
                made[folders[item.record["status"]]].add(item.record["clip_id"], item.members)
            if item.preview:
                made["previews"].add(item.record["clip_id"], {"jpg": item.preview})
        placed = {name: writer.close(out) for name, writer in made.items()}
    for row in rows:
        clip = row.get("clip_id")
        for place in (placed[name].get(clip) for name in folders.values() if clip):
            if place:
                row |= {"shard": place.shard, "offset": place.offset, "bytes": place.size}
        preview = placed["previews"].get(clip) if clip else None
        if preview:
            row |= {
                "preview_shard": preview.shard,
                "preview_offset": preview.offset,
                "preview_bytes": preview.size,
            }
    return rows


def _checked(annotator: Annotator, frames: Frames, fps: float) -> Annotation:
    """What an annotator gives, held against what it promised; numpy numbers become Python's."""
    found = annotator(frames, fps)
    if set(found.tracks) != set(annotator.tracks) or set(found.signals) != set(annotator.signals):
        given = sorted(found.tracks) + sorted(found.signals)
        raise ClipError(ErrorCode.ANNOTATOR_ERROR, f"{annotator.name} gave {given}, not what it declares")
    for name, track in found.tracks.items():
        if track.shape != frames.shape or track.dtype != np.uint8:
            detail = f"track {name} is {track.dtype} {track.shape}, the clip uint8 {frames.shape}"
            raise ClipError(ErrorCode.ANNOTATOR_ERROR, detail)
    for name, value in found.signals.items():
        plain = value.item() if isinstance(value, np.generic) else value
        kind = annotator.signals[name].kind
        if plain is not None and (not isinstance(plain, _KINDS[kind]) or plain != plain):
            raise ClipError(ErrorCode.ANNOTATOR_ERROR, f"signal {name} is {plain!r}, not a {kind}")
        found.signals[name] = plain
    return found


# The Python types of a signal's kind; a whole number is a float too.
_KINDS: dict[str, tuple[type, ...]] = {"float": (float, int), "int": (int,), "str": (str,), "bool": (bool,)}


class _Timer:
    """Adds the CPU seconds since its last call to one step; wall seconds would count the neighbours' work too."""

    def __init__(self, timings: dict[str, float]) -> None:
        self._timings, self._last = timings, time.process_time()

    def __call__(self, step: str) -> None:
        now = time.process_time()
        self._timings[step] = self._timings.get(step, 0.0) + now - self._last
        self._last = now


def _one_thread() -> None:
    """One thread per worker: the plan runs one worker per core, and results must not depend on thread counts."""
    cv2.setNumThreads(1)


def _shape(row: dict[str, Any], box: list[int] | None) -> tuple[int, int]:
    return (box[2] - box[0], box[3] - box[1]) if box else (row["source_width"], row["source_height"])


def _span(window: Window) -> dict[str, Any]:
    return {"start_s": window.start_s, "end_s": window.end_s}


def _windows(rows: list[dict[str, Any]]) -> list[Window]:
    return [Window(row["clip_id"], row["start_s"], row["end_s"], row["frames"]) for row in rows]


def _failed(failure: Failure, stage: str) -> dict[str, Any]:
    return {"status": "failed", "code": failure.code.value, "detail": failure.detail, "stage": stage}


def _fail(item: Item, failure: Failure, stage: str) -> None:
    item.record |= _failed(failure, stage)
    item.members.clear()


def _failed_clip(base: dict[str, Any], window: Window, failure: Failure, stage: str) -> Item:
    span = {"clip_id": window.clip_id, **_span(window), "frames": window.frames}
    return Item(base | span | _failed(failure, stage))


def _failed_source(base: dict[str, Any], known: dict[str, Any] | None, failure: Failure, stage: str) -> Iterator[Item]:
    """A source that cannot be had now. What an earlier run found out about it stands; its missing clips have failed."""
    if known is None:
        yield _source_item(base, _failed(failure, stage))
        return
    base |= known["row"]
    yield _source_item(base, {})
    for window in _windows(known["missing"]):
        yield _failed_clip({name: base[name] for name in base if name.startswith("source_")}, window, failure, stage)


def _source_item(base: dict[str, Any], found: dict[str, Any]) -> Item:
    return Item({"kind": "source", **base, **found})


ray_peek = ray.remote(num_cpus=0)(peek)
ray_pack = ray.remote(num_cpus=0, max_retries=-1)(pack)
