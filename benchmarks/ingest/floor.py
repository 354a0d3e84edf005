"""The floor of ingest: the same work on the same clips by bare processes, to see what the engine costs.

One process per core, one thread each, no Ray, no sandbox, no shards. Each source is decoded once: the thumbnails for
the shot detector and the clips come from the same decoded frames, and annotators see frames, and tracks of others,
before encoding.
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
from pipeline.video.frames import read_frames
from pipeline.video.grid import shots_of, typical_step
from pipeline.video.probe import probe_video


@dataclass(frozen=True, slots=True)
class Floor:
    """Wall seconds of the work and of start-up before it (imports and models), clips made, CPU seconds by step.

    `busy_s` is how long a process was at work, on average: what the wall would be if all ended at once.
    """

    wall_s: float
    busy_s: float
    startup_s: float
    clips: int
    seconds: dict[str, float]


def floor(paths: Sequence[str], recipe: Recipe, cores: int) -> Floor:
    """Do every source once, on `cores` processes that take the next source when they are done with one."""
    if recipe.crop_bars or recipe.score_all:
        raise UsageError("the floor does neither crop_bars nor score_all: it would not be the same work")
    context = multiprocessing.get_context("spawn")
    begun = time.perf_counter()
    ready, go = context.Barrier(cores + 1), context.Barrier(cores + 1)
    work, done = context.Queue(), context.Queue()
    for path in [*paths, *[None] * cores]:
        work.put(path)
    processes = [context.Process(target=_worker, args=(recipe, ready, go, work, done)) for _ in range(cores)]
    with _environment(WORKER_ENVIRONMENT):
        for process in processes:
            process.start()
    ready.wait()
    started = time.perf_counter()
    go.wait()
    results = [done.get() for _ in processes]
    wall = time.perf_counter() - started
    for process in processes:
        process.join()
    seconds: defaultdict[str, float] = defaultdict(float)
    for _, _, spent in results:
        for step, one in spent.items():
            seconds[step] += one
    busy = sum(at_work for _, at_work, _ in results) / cores
    return Floor(wall, busy, started - begun, sum(clips for clips, _, _ in results), seconds)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """What a worker's environment holds, for the processes started meanwhile and for no other."""
    before = dict(os.environ)
    os.environ |= variables
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


def _worker(recipe: Recipe, ready: Any, go: Any, work: Any, done: Any) -> None:
    worker.prepare()
    one = _One(recipe)
    ready.wait()
    go.wait()
    clips, started = 0, time.perf_counter()
    while (path := work.get()) is not None:
        clips += one.source(path)
    done.put((clips, time.perf_counter() - started, one.seconds))


class _One:
    """Everything that one process needs, loaded once."""

    def __init__(self, recipe: Recipe) -> None:
        self._blueprint = Blueprint.for_ingest(recipe, ())
        self._rules = self._blueprint.rules()
        self._detector = shots.make_detector(recipe.shots)
        self._annotators = [registry.load_annotator(name)() for name in recipe.annotators]
        self._needed = {name for annotator in self._annotators for name in registry.needs(annotator)}
        self.seconds: dict[str, float] = {}

    def source(self, path: str) -> int:
        """Do one source; returns how many clips were encoded, tracks included."""
        recipe = self._blueprint.recipe
        self._timed = Timer(self.seconds)
        with Scratch() as scratch:
            content = fetch_source(Source(path), scratch.path).sha256
        self._timed("fetch")
        try:
            probe = probe_video(path, recipe.limits.pixels)
            decoded = list(read_frames(path, probe))
        except ClipError:
            return 0
        times = np.array([one.time_s for one in decoded])
        end_s = decoded[-1].time_s + decoded[-1].duration_s
        thumbs = np.stack([thumbnail(one.frame, one.display.crop) for one in decoded])
        size = recipe.grid.size(probe.display.width, probe.display.height)
        self._timed("scan")
        if size is None:
            return 0
        found = shots_of(self._detector([thumbs]), times, end_s, np.array([one.joined for one in decoded]))
        self._timed("shots")
        source = {
            "source_width": probe.display.width,
            "source_height": probe.display.height,
            "source_fps": 1 / typical_step(times, end_s),
            "width": size[0],
            "height": size[1],
        }
        made = 0
        for window in recipe.grid.windows(content, found, times):
            shown = np.searchsorted(times, window.limits(recipe.grid.fps), side="right") - 1
            pictures = {index: to_rgb(decoded[index].frame, decoded[index].display, size) for index in set(shown)}
            frames = np.stack([pictures[index] for index in shown])
            self._timed("decode")
            values: dict[str, Any] = source | sandboxed.measure(frames, recipe.grid.fps, recipe.filters)
            rejected = self._rules.judge(values, 0).status == "rejected"
            self._timed("filters")
            sandboxed.strip(frames)
            if not rejected:
                self._encode(frames)
                self._annotate(frames, values)
                made += 1
        return made

    def _annotate(self, frames: Frames, values: dict[str, Any]) -> None:
        fps = self._blueprint.recipe.grid.fps
        made: dict[str, Any] = dict(values)
        for position, annotator in enumerate(self._annotators, 1):
            result = annotator(frames, fps, **{name: made[name] for name in registry.needs(annotator)})
            self._timed(annotator.name)
            values |= result.signals
            made |= result.signals | {name: track for name, track in result.tracks.items() if name in self._needed}
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
        self._timed("encode")


def videos(folder: Path) -> list[str]:
    """The videos of a folder, sorted by name. Raises `UsageError` when there are none."""
    found = sorted(str(path) for path in folder.iterdir() if path.suffix in {".mp4", ".mkv", ".webm", ".avi"})
    if not found:
        raise UsageError(f"no video file in the folder {folder}")
    return found


def expanded(paths: Sequence[str], repeat: int, folder: Path) -> list[str]:
    """Each path `repeat` times, as files whose content differs, so that no run can reuse another's work."""
    copies = []
    for number, path in enumerate(map(Path, [*paths] * repeat)):
        copy = folder / f"{number:05d}-{path.name}"
        # Bytes after the last box or cluster are ignored by every demuxer, and make another content hash.
        copy.write_bytes(path.read_bytes() + b"\0\0\0\x10free" + number.to_bytes(8, "big"))
        copies.append(str(copy))
    return copies
