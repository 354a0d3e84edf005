"""Annotates clips and gives them a verdict, in the worker that cut them or in further stages of the Ray plan.

An error in one clip becomes its verdict here (`errors.attempt`); only `RunError` is raised.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from annotators.base import Annotation, Annotator, ClipInput, Frames, Picture, Sample, Value
from pipeline.attempts import Attempts, Permission, describe_deaths
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

    def __init__(self, blueprint: Blueprint, stage_index: int, attempts: Attempts) -> None:
        """`stage_index` counts the recipe's stages from 0; the last one gives the verdict."""
        process.prepare()
        self._blueprint, self._stage_index, self._attempts = blueprint, stage_index, attempts
        self._annotators: list[Annotator] = [blueprint.build_annotator(name) for name in blueprint.stages[stage_index]]
        self._annotators_before = sum(len(stage) for stage in blueprint.stages[:stage_index])
        self._rules = blueprint.rules()
        self._is_layer = blueprint.layer != BASE_LAYER

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        items = [*read_items(batch)]
        yield from (to_table(item) for item in items if isinstance(item, SourceItem))
        for item in self.annotate([item for item in items if isinstance(item, ClipItem)]):
            yield to_table(item)

    def annotate(self, items: Sequence[ClipItem]) -> Iterator[ClipItem]:
        """Do this stage's part of clips, unless they are settled or annotated already. Yields those that go on: not all
        of them when the run must stop."""
        waiting = []
        for item in items:
            if "status" in item.record or item.stages_done > self._stage_index:
                yield item
            else:
                waiting.append(item)
        for group in self._group(waiting):
            yield from self._annotate_group(group)

    def _group(self, items: Sequence[ClipItem]) -> list[Sequence[ClipItem]]:
        """Which clips to annotate together: all, but a clip at which a worker died must not take others along."""
        if len(items) < 2:
            return [items]
        safe_items: list[ClipItem] = []
        suspects: list[ClipItem] = []
        for item in items:
            (suspects if self._attempts.is_suspect(self._unit(item)) else safe_items).append(item)
        return [safe_items, *([item] for item in suspects)]

    def _unit(self, item: ClipItem) -> str:
        return f"stage {self._stage_index} of clip {item.record['clip_id']}"

    def _annotate_group(self, items: Sequence[ClipItem]) -> Iterator[ClipItem]:
        """Every annotator on all of these clips in turn, in calls of as many clips as it takes."""
        clips = []
        for item in items:
            permission = self._attempts.begin(self._unit(item), together=len(items) > 1)
            if permission is Permission.DEAD:
                names = ", ".join(annotator.name for annotator in self._annotators)
                item.fail(describe_deaths(f"annotated this clip ({names})"), f"stage {self._stage_index}")
                yield item
            elif permission is Permission.GO:
                clips.append(_ClipProgress(item, self._annotate))
        for annotator in self._annotators:
            waiting = [clip for clip in clips if clip.input is not None]
            size = registry.declare(annotator).clips_per_call
            for start in range(0, len(waiting), size):
                _call(annotator, waiting[start : start + size])
        for clip in clips:
            self._attempts.end(self._unit(clip.item))
            yield clip.item

    def _annotate(self, clip: _ClipProgress) -> AnnotationSteps:
        """Annotate one clip: yields the input of one annotator after the other, and is sent its annotation."""
        item = clip.item
        record = item.record
        timer = Timer(record.setdefault("timings", {}))
        frames = decode_clip(item.members["mp4"]) if self._is_layer else _decode_own_clip(item.members["mp4"])
        timer("redecode")
        # Members from before this layer may be needed, and are stored elsewhere already.
        stored = {name: item.members.pop(name) for name in [*item.members] if self._is_layer}
        signals: dict[str, Value] = json.loads(stored.get("json", b"{}")).get("signals", {})
        signals |= item.signals
        data: dict[str, Any] = json.loads(item.members.get("json", b"{}"))
        for position, annotator in enumerate(self._annotators, self._annotators_before + 1):
            clip.step = annotator.name
            needed = _gather_needs(annotator, signals, stored | item.members, record["clip_id"])
            timer("redecode")
            annotation, seconds = yield ClipInput(frames, record["fps"], needed)
            timer.add(annotator.name, seconds)
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
        item.stages_done = self._stage_index + 1
        last = self._stage_index == len(self._blueprint.stages) - 1
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


# Yields the input of an annotator, and is sent the annotation and the CPU seconds that it took.
AnnotationSteps = Generator[ClipInput, tuple[Annotation, float], None]


class _ClipProgress:
    """A clip between two annotators. `input`: of the next one; None after the last, or when the clip has failed."""

    def __init__(self, item: ClipItem, annotate: Callable[[_ClipProgress], AnnotationSteps]) -> None:
        self.item, self.step = item, "decode"
        self.input: ClipInput | None = None
        self._steps = annotate(self)
        self._advance(lambda: next(self._steps))

    def add(self, annotation: Annotation | Failure, seconds: float) -> None:
        """Go on with what an annotator made in so many CPU seconds."""
        if isinstance(annotation, Failure):
            self._fail(annotation)
        else:
            self._advance(lambda: self._steps.send((annotation, seconds)))

    def _advance(self, resume: Callable[[], ClipInput]) -> None:
        def take_input() -> ClipInput | None:
            try:
                return resume()
            except StopIteration:
                return None

        next_input = attempt(ErrorCode.ANNOTATOR_ERROR, take_input)
        if isinstance(next_input, Failure):
            self._fail(next_input)
        else:
            self.input = next_input

    def _fail(self, failure: Failure) -> None:
        self.input = None
        self.item.fail(failure, self.step)


def _call(annotator: Annotator, clips: Sequence[_ClipProgress]) -> None:
    """One call of an annotator, or as many as it takes to know which clip was at fault."""
    started = time.process_time()
    annotations = output_checks.annotate_clips(annotator, [clip.input for clip in clips if clip.input is not None])
    seconds = (time.process_time() - started) / len(clips)
    for clip, annotation in zip(clips, annotations, strict=True):
        clip.add(annotation, seconds)


class Timer:
    """Adds the CPU seconds since its last call to one step; wall seconds would include other processes."""

    def __init__(self, timings: dict[str, float]) -> None:
        self._timings, self._last = timings, time.process_time()

    def __call__(self, step: str) -> None:
        self.add(step, time.process_time() - self._last)

    def add(self, step: str, seconds: float) -> None:
        """Add so many seconds instead."""
        self._timings[step] = self._timings.get(step, 0.0) + seconds
        self._last = time.process_time()
