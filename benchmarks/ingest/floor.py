"""Measures the floor of ingest: the same work on the same clips by bare processes, to show the engine's cost.

One process per core, one thread each, no Ray, no sandbox, no shards. Each source is decoded once: the thumbnails for
the shot detector and the clips come from the same decoded frames, and annotators get frames and other annotators'
tracks before encoding.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from annotators.base import Frames
from pipeline.engine.engine import WORKER_ENVIRONMENT
from pipeline.errors import ClipError, UsageError
from pipeline.formats.clip_encode import encode_clip, encode_png
from pipeline.recipe import registry
from pipeline.recipe.blueprint import Blueprint
from pipeline.recipe.recipe import Recipe
from pipeline.sources.expand import Source
from pipeline.sources.fetch import fetch_source
from pipeline.stages import sandboxed
from pipeline.stages.annotate import Timer
from pipeline.storage.scratch import Scratch
from pipeline.video import process as worker
from pipeline.video import shots
from pipeline.video.display import thumbnail, to_rgb
from pipeline.video.frames import collect_times, read_frames
from pipeline.video.grid import shots_of, typical_step
from pipeline.video.probe import probe_video


@dataclass(frozen=True, slots=True)
class Floor:
    """Wall seconds of the work and of start-up before it (imports and models), number of clips, CPU seconds by step.

    `busy_s` is the mean time that a process worked: the wall time if all ended at once.
    """

    wall_s: float
    busy_s: float
    startup_s: float
    clips: int
    seconds: dict[str, float]


def measure_floor(paths: Sequence[str], recipe: Recipe, cores: int) -> Floor:
    """Process every source once, on `cores` processes that take the next source when they finish one."""
    if recipe.crop_bars or recipe.score_all:
        raise UsageError("the floor does neither crop_bars nor score_all: it would not be the same work")
    context = multiprocessing.get_context("spawn")
    started = time.perf_counter()
    loaded_barrier, start_barrier = context.Barrier(cores + 1), context.Barrier(cores + 1)
    paths_queue, results_queue = context.Queue(), context.Queue()
    for path in [*paths, *[None] * cores]:
        paths_queue.put(path)
    processes = [
        context.Process(target=_run_worker, args=(recipe, loaded_barrier, start_barrier, paths_queue, results_queue))
        for _ in range(cores)
    ]
    with _environment(WORKER_ENVIRONMENT):
        for process in processes:
            process.start()
    loaded_barrier.wait()
    work_started = time.perf_counter()
    start_barrier.wait()
    results = [results_queue.get() for _ in processes]
    wall = time.perf_counter() - work_started
    for process in processes:
        process.join()
    seconds: defaultdict[str, float] = defaultdict(float)
    for _, _, step_times in results:
        for step, step_seconds in step_times.items():
            seconds[step] += step_seconds
    busy = sum(busy_s for _, busy_s, _ in results) / cores
    return Floor(wall, busy, work_started - started, sum(clips for clips, _, _ in results), seconds)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set a worker's environment variables for the processes started meanwhile, and for no others."""
    before = dict(os.environ)
    os.environ |= variables
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


def _run_worker(recipe: Recipe, loaded_barrier: Any, start_barrier: Any, paths_queue: Any, results_queue: Any) -> None:
    worker.prepare()
    processor = _SourceProcessor(recipe)
    loaded_barrier.wait()
    start_barrier.wait()
    clips, started = 0, time.perf_counter()
    while (path := paths_queue.get()) is not None:
        clips += processor.process_source(path)
    results_queue.put((clips, time.perf_counter() - started, processor.seconds))


class _SourceProcessor:
    """Processes sources with detector and annotators that are loaded once."""

    def __init__(self, recipe: Recipe) -> None:
        self._blueprint = Blueprint.for_ingest(recipe, ())
        self._rules = self._blueprint.rules()
        self._detector = shots.make_detector(recipe.shots)
        self._annotators = [registry.load_annotator(name)() for name in recipe.annotators]
        self._needed = {name for annotator in self._annotators for name in registry.declare(annotator).needs}
        self.seconds: dict[str, float] = {}

    def process_source(self, path: str) -> int:
        """Process one source; returns how many clips were encoded together with their tracks."""
        recipe = self._blueprint.recipe
        self._record_time = Timer(self.seconds)
        with Scratch() as scratch:
            content = fetch_source(Source(path), scratch.path).sha256
        self._record_time("fetch")
        try:
            probe = probe_video(path, recipe.limits.pixels)
            decoded = list(read_frames(path, probe))
        except ClipError:
            return 0
        frame_times = collect_times(decoded)
        thumbs = np.stack([thumbnail(picture.frame, picture.display.crop) for picture in decoded])
        size = recipe.grid.size(probe.display.width, probe.display.height)
        self._record_time("scan")
        if size is None:
            return 0
        shot_list = shots_of(self._detector([thumbs]), *frame_times)
        self._record_time("shots")
        source = {
            "source_width": probe.display.width,
            "source_height": probe.display.height,
            "source_fps": 1 / typical_step(frame_times.times, frame_times.end_s),
            "width": size[0],
            "height": size[1],
        }
        encoded = 0
        for window in recipe.grid.windows(content, shot_list, frame_times.times):
            indices = np.searchsorted(frame_times.times, window.limits(recipe.grid.fps), side="right") - 1
            pictures = {index: to_rgb(decoded[index].frame, decoded[index].display, size) for index in set(indices)}
            frames = np.stack([pictures[index] for index in indices])
            self._record_time("decode")
            values: dict[str, Any] = source | sandboxed.measure(frames, recipe.grid.fps, recipe.filters)
            rejected = self._rules.judge(values, 0).status == "rejected"
            self._record_time("filters")
            sandboxed.make_strip(frames)
            if not rejected:
                self._encode(frames)
                self._annotate(frames, values)
                encoded += 1
        return encoded

    def _annotate(self, frames: Frames, values: dict[str, Any]) -> None:
        fps = self._blueprint.recipe.grid.fps
        inputs: dict[str, Any] = dict(values)
        for position, annotator in enumerate(self._annotators, 1):
            result = annotator(frames, fps, **{name: inputs[name] for name in registry.declare(annotator).needs})
            self._record_time(annotator.name)
            values |= result.signals
            inputs |= result.signals | {name: track for name, track in result.tracks.items() if name in self._needed}
            for pictures in result.pictures.values():
                for picture in pictures:
                    encode_png(picture)
            for track in result.tracks.values():
                self._encode(track)
            if self._rules.judge(values, position).status == "rejected":
                return

    def _encode(self, frames: Frames) -> None:
        recipe = self._blueprint.recipe
        encode_clip(frames, recipe.grid.fps, recipe.encode.crf, recipe.encode.preset)
        self._record_time("encode")


def list_videos(folder: Path) -> list[str]:
    """The videos of a folder, sorted by name. Raises `UsageError` if there are none."""
    paths = sorted(str(path) for path in folder.iterdir() if path.suffix in {".mp4", ".mkv", ".webm", ".avi"})
    if not paths:
        raise UsageError(f"no video file in the folder {folder}")
    return paths


def expand_copies(paths: Sequence[str], repeat: int, folder: Path) -> list[str]:
    """Copy each file `repeat` times, each copy with different content, so that no run can reuse another's work."""
    copies = []
    for number, path in enumerate(map(Path, [*paths] * repeat)):
        copy = folder / f"{number:05d}-{path.name}"
        # Every demuxer ignores bytes after the last box or cluster, but they change the content hash.
        copy.write_bytes(path.read_bytes() + b"\0\0\0\x10free" + number.to_bytes(8, "big"))
        copies.append(str(copy))
    return copies
