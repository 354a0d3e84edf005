"""Annotates clips and gives them a verdict, in the worker that cut them or in further stages of the Ray plan.

An error in one clip becomes its verdict here (`errors.attempt`); only `RunError` is raised.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import pyarrow as pa

from annotators.base import Annotation, Annotator, Frames, Picture, Sample, Value
from pipeline.attempts import Attempts, Permission
from pipeline.errors import ClipError, ErrorCode, Failure, attempt
from pipeline.formats import clip_decode
from pipeline.formats.clip_decode import decode_clip
from pipeline.formats.clip_encode import encode_clip, encode_png
from pipeline.formats.conditions import track_names
from pipeline.formats.schema import BASE_LAYER, Status
from pipeline.recipe import output_checks, registry
from pipeline.recipe.blueprint import Blueprint
from pipeline.stages.item import ClipItem, SourceItem, read_items, to_table
from pipeline.video import process


class AnnotateStage:
    """Clips to samples: one decode, then every annotator of this stage on the same frames."""

    def __init__(self, blueprint: Blueprint, number: int, attempts: Attempts) -> None:
        """`number` counts the recipe's stages from 0; the last one gives the verdict."""
        process.prepare()
        self._blueprint, self._number, self._attempts = blueprint, number, attempts
        self._annotators: list[Annotator] = [blueprint.build_annotator(name) for name in blueprint.stages[number]]
        self._annotators_before = sum(len(stage) for stage in blueprint.stages[:number])
        self._rules = blueprint.rules()
        self._is_layer = blueprint.layer != BASE_LAYER
        self._step = "decode"

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for item in read_items(batch):
            if isinstance(item, SourceItem) or self.annotate(item):
                yield to_table(item)

    def annotate(self, item: ClipItem) -> bool:
        """Do this stage's part of a clip unless it is settled or annotated already; False when the run must stop."""
        if "status" in item.record or item.stages_done > self._number:
            return True
        unit = f"stage {self._number} of clip {item.record['clip_id']}"
        permission = self._attempts.begin(unit)
        if permission is Permission.STOP:
            return False
        if permission is Permission.DEAD:
            detail = f"every worker that annotated this clip ({', '.join(self._annotator_names())}) died while at it"
            item.fail(Failure(ErrorCode.WORKER_DIED, detail), f"stage {self._number}")
            return True
        failure = attempt(ErrorCode.ANNOTATOR_ERROR, lambda: self._annotate(item))
        if isinstance(failure, Failure):
            item.fail(failure, self._step)
        self._attempts.end(unit)
        return True

    def _annotator_names(self) -> list[str]:
        return [annotator.name for annotator in self._annotators]

    def _annotate(self, item: ClipItem) -> None:
        record = item.record
        timer = Timer(record.setdefault("timings", {}))
        self._step = "decode"
        frames = decode_clip(item.members["mp4"]) if self._is_layer else _decode_own_clip(item.members["mp4"])
        timer("redecode")
        # Members from before this layer may be needed, and are stored elsewhere already.
        stored = {name: item.members.pop(name) for name in [*item.members] if self._is_layer}
        signals: dict[str, Value] = json.loads(stored.get("json", b"{}")).get("signals", {})
        signals |= item.signals
        data: dict[str, Any] = json.loads(item.members.get("json", b"{}"))
        for position, annotator in enumerate(self._annotators, self._annotators_before + 1):
            self._step = annotator.name
            needed = _gather_needs(annotator, signals, stored | item.members, record["clip_id"])
            timer("redecode")
            annotation = output_checks.annotate(annotator, frames, record["fps"], needed)
            timer(annotator.name)
            item.members |= self._encode_annotation(annotation, record["fps"])
            if annotation.caption is not None:
                record["caption"] = annotation.caption
            timer("encode")
            item.signals |= annotation.signals
            signals |= annotation.signals
            taken = annotation.data.keys() & {*data, *output_checks.SAMPLE_KEYS}
            if taken:
                detail = f"{annotator.name} gave data under the names {sorted(taken)}, which are taken"
                raise ClipError(ErrorCode.ANNOTATOR_ERROR, detail)
            data |= annotation.data
            record["lineage"] = [*record.get("lineage", []), *self._blueprint.select_lineage([annotator.name])]
            verdict = self._rules.judge(item.columns(), position)
            settled = verdict.status == Status.REJECTED and not self._blueprint.recipe.score_all
            if settled:
                break
        item.members["json"] = json.dumps(data, allow_nan=False).encode()
        item.stages_done = self._number + 1
        last = self._number == len(self._blueprint.stages) - 1
        if last or settled:
            record.update({"status": verdict.status, "rule": verdict.rule, "detail": verdict.detail})
            if verdict.status == Status.REJECTED:
                item.members.clear()
            else:
                self._finish_clip(item, data)

    def _finish_clip(self, item: ClipItem, data: dict[str, Any]) -> None:
        """Give a clip its tasks and its JSON."""
        columns = item.columns()
        item.record["tasks"] = self._rules.tasks(columns)
        signals = {name: item.signals.get(name) for name in sorted(self._blueprint.signals)}
        sample = {name: signals if name == "signals" else columns[name] for name in output_checks.SAMPLE_KEYS}
        text = json.dumps(sample | data, sort_keys=True, separators=(",", ":"), allow_nan=False)
        item.members["json"] = text.encode()
        if self._is_layer:
            # Two layers of one clip must not share a member's name.
            for name in item.members.keys() & {"json", "txt"}:
                item.members[f"{self._blueprint.layer}.{name}"] = item.members.pop(name)

    def _encode_annotation(self, annotation: Annotation, fps: float) -> dict[str, bytes]:
        """The members that an annotation adds to a sample."""
        options = self._blueprint.recipe.encode
        members = {
            f"{name}.mp4": encode_clip(track, fps, options.crf, options.preset)
            for name, track in annotation.tracks.items()
        }
        for name, pictures in annotation.pictures.items():
            members |= {f"{name}.{number}.png": encode_png(picture) for number, picture in enumerate(pictures)}
        members |= annotation.files
        return members if annotation.caption is None else members | {"txt": annotation.caption.encode()}


def _gather_needs(
    annotator: Annotator, signals: Mapping[str, Value], members: Mapping[str, bytes], clip_id: str
) -> dict[str, Any]:
    """The arguments of an annotator: a signal of that name, else the track, as a trainer will see it; or the sample."""
    needed: dict[str, Any] = {}
    for name in registry.declare(annotator).needs:
        if name not in signals and f"{name}.mp4" not in members:
            raise ClipError(
                ErrorCode.ANNOTATOR_ERROR, f"{annotator.name} needs {name!r}, which this clip does not have"
            )
        needed[name] = signals[name] if name in signals else decode_clip(members[f"{name}.mp4"])
    return needed | {"sample": _build_sample(clip_id, members)} if registry.declare(annotator).sample else needed


def _decode_own_clip(mp4: bytes) -> Frames:
    """The frames of a clip that this run wrote. Raises ClipError ENCODE_ERROR: any damage is our own."""
    frames = attempt(ErrorCode.INTERNAL_ERROR, lambda: decode_clip(mp4))
    if isinstance(frames, Failure) and frames.code == ErrorCode.CLIP_DAMAGED:
        raise ClipError(ErrorCode.ENCODE_ERROR, frames.detail)
    if isinstance(frames, Failure):
        raise frames.to_exception()
    return frames


def _build_sample(clip_id: str, members: Mapping[str, bytes]) -> Sample:
    """The members of a sample as an annotator sees them; a track is decoded when it is used."""
    tracks = {track: partial(decode_clip, members[name]) for track, name in track_names(members).items()}
    pictures: dict[str, list[Picture]] = {}
    numbered = [(*name.removesuffix(".png").rpartition(".")[::2], name) for name in members if name.endswith(".png")]
    for kind, _, name in sorted(numbered, key=lambda entry: (entry[0], int(entry[1]))):
        pictures.setdefault(kind, []).append(clip_decode.decode_png(members[name]))
    return Sample(clip_id, tracks, pictures, members["txt"].decode() if "txt" in members else None)


class Timer:
    """Adds the CPU seconds since its last call to one step; wall seconds would include other processes."""

    def __init__(self, timings: dict[str, float]) -> None:
        self._timings, self._last = timings, time.process_time()

    def __call__(self, step: str) -> None:
        now = time.process_time()
        self._timings[step] = self._timings.get(step, 0.0) + now - self._last
        self._last = now
