"""The work on one source's bytes inside the decoder's child process: measure, cut, judge and encode."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np

from annotators.base import Filter, Frames, Value
from pipeline.errors import ClipError, ErrorCode, Failure, attempt
from pipeline.formats.clip_encode import encode_clip
from pipeline.formats.records import VerdictColumns
from pipeline.formats.schema import Status
from pipeline.recipe import output_checks, registry
from pipeline.recipe.blueprint import Blueprint
from pipeline.recipe.rules import Rules
from pipeline.stages.item import failure_columns
from pipeline.video import sandbox_child
from pipeline.video.content_box import find_content_box
from pipeline.video.frames import DecodedFrame, ThumbnailChunk, cut_windows, read_frames, read_thumbnails
from pipeline.video.grid import Window
from pipeline.video.probe import Probe, probe_video
from pipeline.video.timeline import Tally

# A preview strip: five frames side by side, small enough to keep for every clip ever seen.
STRIP_FRAMES = 5
STRIP_HEIGHT = 96
# Decoded frames are kept up to this many bytes: ten seconds of 720p. Much more would not pay for the memory.
KEPT_BYTES = 512 << 20


@dataclass(slots=True)
class ScanResult:
    """The result of a scan: the probe, how many frames there were, when the last one ends, and the content box if the
    recipe crops bars."""

    probe: Probe
    tally: Tally
    end_s: float
    box: tuple[int, int, int, int] | None
    seconds: float


@dataclass(slots=True)
class Cut:
    """One clip out of a source: its signals, a verdict if it is rejected or failed, and else its bytes."""

    window: Window
    signals: dict[str, Value] = field(default_factory=dict)
    verdict: VerdictColumns = field(default_factory=VerdictColumns)
    mp4: bytes | None = None
    preview: bytes | None = None
    timings: dict[str, float] = field(default_factory=dict)


def scan(path: Path, blueprint: Blueprint) -> Iterator[ThumbnailChunk | ScanResult]:
    """Decode a whole source once, to thumbnails for the shot detector; the last item is a `ScanResult`."""
    limits = blueprint.recipe.limits
    started = time.process_time()
    probe = probe_video(path, limits.pixels)
    if probe.duration_s is not None and probe.duration_s > limits.duration_s:
        raise ClipError(ErrorCode.TOO_LARGE, f"lasts {probe.duration_s:.0f} s; the limit is {limits.duration_s:.0f} s")
    box = find_content_box(path, probe, sandbox_child.report_progress) if blueprint.recipe.crop_bars else None
    end_s, first_s, tally = 0.0, None, Tally()
    for thumbs in read_thumbnails(
        _frame_cache.keep(path, read_frames(path, probe, sandbox_child.report_progress, tally))
    ):
        # A broadcast's timestamps begin anywhere.
        first_s = thumbs.times[0] if first_s is None else first_s
        if thumbs.times[-1] - first_s > limits.duration_s:
            raise ClipError(ErrorCode.TOO_LARGE, f"lasts longer than {limits.duration_s:.0f} s")
        end_s = float(thumbs.ends[-1])
        yield thumbs
    yield ScanResult(probe, tally, end_s, box, time.process_time() - started)


def cut_clips(
    path: Path,
    windows: list[Window],
    size: tuple[int, int],
    box: list[int] | None,
    columns: Mapping[str, object],
    blueprint: Blueprint,
) -> Iterator[Cut]:
    """Cut a source's clips, in order of time; decodes it again unless it was just scanned and is small.

    `columns`: those already known, of the source, its manifest, and the clips' size and rate. A clip that a
    rule rejects on cheap signals is not encoded, unless the recipe says `score_all`.
    """
    recipe = blueprint.recipe
    probe = probe_video(path, recipe.limits.pixels)
    crop = (box[0], box[1], box[2], box[3]) if box else None
    before = time.process_time()
    pictures = _frame_cache.take(path) or read_frames(path, probe, sandbox_child.report_progress)
    for window, frames in cut_windows(pictures, probe, windows, recipe.grid.fps, size, crop):
        cut = Cut(window)
        cut.timings["decode"] = time.process_time() - before
        # A filter or rule that fails on one clip says nothing about the next one.
        failure = attempt(ErrorCode.INTERNAL_ERROR, partial(_finish_clip, cut, frames, columns, blueprint))
        if isinstance(failure, Failure):
            cut.verdict = failure_columns(failure, "cut")
            cut.mp4 = None
        yield cut
        before = time.process_time()


def _finish_clip(cut: Cut, frames: Frames, columns: Mapping[str, object], blueprint: Blueprint) -> None:
    """Measure, judge and encode one clip."""
    recipe, started = blueprint.recipe, time.process_time()
    cut.preview = make_strip(frames)
    cut.signals = measure(frames, recipe.grid.fps, blueprint.filters)
    verdict = _cached_rules(blueprint).judge({**columns, **asdict(cut.window), **cut.signals}, 0)
    measured = time.process_time()
    if verdict.status == Status.REJECTED and not recipe.score_all:
        cut.verdict = {"status": verdict.status, "rule": verdict.rule, "detail": verdict.detail}
    else:
        cut.mp4 = encode_clip(frames, recipe.grid.fps, recipe.encode.crf, recipe.encode.preset)
    cut.timings |= {"filters": measured - started, "encode": time.process_time() - measured}


def measure(frames: Frames, fps: float, filters: tuple[str, ...]) -> dict[str, Value]:
    """Measure the signals of these filters on one clip. Raises `ClipError` where one of them fails."""
    values: dict[str, Value] = {}
    for quality_filter in _load_filters(filters):
        values |= output_checks.measure(quality_filter, frames, fps)
        sandbox_child.report_progress()
    return values


def make_strip(frames: Frames) -> bytes:
    """Make the preview strip: evenly spread frames side by side as a JPEG, 96 pixels high."""
    height, width = frames.shape[1:3]
    strip_width = max(1, round(width * STRIP_HEIGHT / height))
    selection = frames[np.linspace(0, len(frames) - 1, STRIP_FRAMES).round().astype(int)]
    thumbnails = [cv2.resize(frame, (strip_width, STRIP_HEIGHT), interpolation=cv2.INTER_AREA) for frame in selection]
    _, data = cv2.imencode(
        ".jpg", cv2.cvtColor(np.hstack(thumbnails), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80]
    )
    return data.tobytes()


class _FrameCache:
    """The frames of the source that was scanned last, if they fit into `KEPT_BYTES`."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._frames: list[DecodedFrame] = []

    def keep(self, path: Path, decoded: Iterator[DecodedFrame]) -> Iterator[DecodedFrame]:
        """Pass frames on and keep them; the frames of another source are dropped."""
        self._path, self._frames = None, []
        budget = KEPT_BYTES
        for item in decoded:
            budget -= sum(plane.buffer_size for plane in item.frame.planes)
            if budget >= 0:
                self._frames.append(item)
            else:
                self._frames.clear()
            yield item
        self._path = path if budget >= 0 else None

    def take(self, path: Path) -> Iterator[DecodedFrame] | None:
        """All frames of a source, once, or None if they were not kept."""
        frames, complete = self._frames, self._path == path
        self._path, self._frames = None, []
        return iter(frames) if complete else None


_frame_cache = _FrameCache()


@lru_cache(maxsize=4)
def _load_filters(names: tuple[str, ...]) -> list[Filter]:
    return [registry.load_filter(name)() for name in names]


_RULES: dict[str, Rules] = {}


def _cached_rules(blueprint: Blueprint) -> Rules:
    # The child lives through many sources and gets the blueprint with each: the rules are built once.
    key = repr((blueprint.recipe.text, blueprint.manifest))
    if key not in _RULES:
        _RULES[key] = blueprint.rules()
    return _RULES[key]
