"""The floor of ingest: the same work on the same clips by bare processes, to see what the engine costs.

One process per core, one thread each, no Ray, no sandbox, no shards. Each source is decoded once: the thumbnails for
the shot detector and the clips come from the same decoded frames, and annotators see the frames before encoding.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline import cutting, encode, fetch, registry, shots, video
from pipeline.blueprint import Blueprint
from pipeline.errors import ClipError
from pipeline.grid import shots_of
from pipeline.recipe import Recipe
from pipeline.sources import Source


@dataclass(frozen=True, slots=True)
class Floor:
    """Wall seconds of the work, of start-up before it (imports and models), and what came out."""

    wall_s: float
    startup_s: float
    clips: int
    bytes: int


def floor(paths: Sequence[str], recipe: Recipe, cores: int) -> Floor:
    """Do every source once, on `cores` processes that take the next source when they are done with one."""
    context = multiprocessing.get_context("spawn")
    begun = time.perf_counter()
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    ready, go = context.Barrier(cores + 1), context.Barrier(cores + 1)
    work, done = context.Queue(), context.Queue()
    for path in [*paths, *[None] * cores]:
        work.put(path)
    processes = [context.Process(target=_worker, args=(recipe, ready, go, work, done)) for _ in range(cores)]
    for process in processes:
        process.start()
    ready.wait()
    started = time.perf_counter()
    go.wait()
    results = [done.get() for _ in processes]
    wall = time.perf_counter() - started
    for process in processes:
        process.join()
    return Floor(wall, started - begun, sum(clips for clips, _ in results), sum(size for _, size in results))


def _worker(recipe: Recipe, ready: Any, go: Any, work: Any, done: Any) -> None:
    cv2.setNumThreads(1)
    one = _One(recipe)
    ready.wait()
    go.wait()
    clips = size = 0
    while (path := work.get()) is not None:
        for made in one.source(path):
            clips += 1
            size += made
    done.put((clips, size))


class _One:
    """Everything that one process needs, loaded once."""

    def __init__(self, recipe: Recipe) -> None:
        self._blueprint = Blueprint.ingest(recipe, ())
        self._rules = self._blueprint.rules()
        self._detector = shots.detector(recipe.shots)
        self._annotators = [registry.annotator(name)() for name in recipe.annotators]

    def source(self, path: str) -> list[int]:
        """The bytes of each clip that was encoded, tracks included."""
        recipe = self._blueprint.recipe
        with fetch.Scratch() as scratch:
            content = fetch.fetch(Source(path), scratch.path).sha256
        try:
            probe = video.probe(path, recipe.limits.pixels)
            decoded = list(video.frames(path, probe))
        except ClipError:
            return []
        times = np.array([at for at, _, _ in decoded])
        thumbs = np.stack([video.thumbnail(frame) for _, _, frame in decoded])
        size = recipe.grid.size(probe.width, probe.height)
        if size is None:
            return []
        found = shots_of(self._detector([thumbs]), times, decoded[-1][0] + decoded[-1][1])
        source = {
            "source_width": probe.width,
            "source_height": probe.height,
            "source_fps": (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else None,
            "width": size[0],
            "height": size[1],
        }
        made = []
        for window in recipe.grid.windows(content, found, times):
            shown = np.searchsorted(times, window.limits(recipe.grid.fps), side="right") - 1
            pictures = {index: video.to_rgb(decoded[index][2], probe, size) for index in set(shown)}
            frames = np.stack([pictures[index] for index in shown])
            values: dict[str, Any] = source | cutting.measure(frames, recipe.grid.fps, recipe.filters)
            cutting.strip(frames)
            if self._rules.judge(values, 0).status == "rejected":
                continue
            members = [encode.encode(frames, recipe.grid.fps, recipe.encode.crf, recipe.encode.preset)]
            for position, annotator in enumerate(self._annotators, 1):
                result = annotator(frames, recipe.grid.fps)
                values |= result.signals
                members += [
                    encode.encode(track, recipe.grid.fps, recipe.encode.crf, recipe.encode.preset)
                    for track in result.tracks.values()
                ]
                if self._rules.judge(values, position).status == "rejected":
                    break
            made.append(sum(map(len, members)))
        return made


def videos(folder: Path) -> list[str]:
    """The videos of a folder, sorted by name."""
    return sorted(str(path) for path in folder.iterdir() if path.suffix in {".mp4", ".mkv", ".webm", ".avi"})


def expanded(paths: Sequence[str], repeat: int, folder: Path) -> list[str]:
    """Each path `repeat` times, as files whose content differs, so that no run can reuse another's work."""
    copies = []
    for number, path in enumerate(map(Path, [*paths] * repeat)):
        copy = folder / f"{number:05d}-{path.name}"
        # Bytes after the last box or cluster are ignored by every demuxer, and make another content hash.
        copy.write_bytes(path.read_bytes() + b"\0\0\0\x10free" + number.to_bytes(8, "big"))
        copies.append(str(copy))
    return copies
