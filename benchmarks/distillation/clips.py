"""Crops of the clips of a mixture, in the same form as synthetic scenes: their control track is luma, as VACE's task
"gray" has it. What is held out is what the mixture holds out: by source and by group of near duplicates."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from benchmarks.distillation import scenes
from benchmarks.distillation.scenes import FRAMES, SIDE, Scene
from pipeline.errors import UsageError
from pipeline.formats.clip_decode import decode_planar
from pipeline.mixture.mixture import HELD_OUT, TRAIN
from training.data.stream import Stream
from training.encoding import vcu

# The shorter side that a clip is brought to before crops are cut.
_SCALE = 2 * SIDE
# Windows of a clip, one after the other, and clips: what is enough for variety and fits into memory.
_WINDOWS, _CLIPS = 4, 256
# Until all have come; more only where clips are damaged, which never do.
_EPOCHS = 50
Window = NDArray[np.uint8]


def crops(mixture: str, train: int, test: int) -> tuple[list[Scene], list[Scene], dict[str, int]]:
    """`train` crops of a mixture's training part and `test` of what it holds out, and how many sources they are from.

    Raises UsageError where a part has no clip that is long enough.
    """
    made = {split: _of(mixture, split, count) for split, count in ((TRAIN, train), (HELD_OUT, test))}
    (ours, ours_from), (held, held_from) = made[TRAIN], made[HELD_OUT]
    return ours, held, {"train_sources": ours_from, "test_sources": held_from}


def _of(mixture: str, split: str, count: int) -> tuple[list[Scene], int]:
    """So many crops, as many of each source as of the others, and the number of sources."""
    sources = list(_windows(mixture, split).items())
    if not sources:
        raise UsageError(f"the part {split!r} of {mixture} has no clip of {FRAMES} frames")
    draw = np.random.default_rng(21)
    made = []
    for number in range(count):
        source, windows = sources[number % len(sources)]
        shown = windows[draw.integers(len(windows))]
        top, left = (draw.integers(side - SIDE + 1) for side in shown.shape[1:3])
        clip = np.ascontiguousarray(shown[:, top : top + SIDE, left : left + SIDE])
        hidden = np.zeros(clip.shape[:3], dtype=bool)
        y, x = draw.integers(SIDE // 2 + 1, size=2)
        hidden[:, y : y + SIDE // 2, x : x + SIDE // 2] = True
        track = scenes.luma(clip).round().astype(np.uint8)
        made.append(Scene(clip, "", track, track > scenes.NEAR, hidden, source))
    return made, min(len(sources), count)


def _windows(mixture: str, split: str) -> dict[str, list[Window]]:
    """The windows [T, H, W, 3] of small copies of each source's clips, by its hash."""
    stream = Stream(mixture, split=split, form="members")
    order = stream.order
    long_enough = [bucket for bucket in order.buckets if bucket.frames >= FRAMES]
    wanted = min(_CLIPS, len({int(row) for bucket in long_enough for row in order.rows(bucket)}))
    found: dict[str, list[Window]] = {}
    seen: set[str] = set()
    for step in islice(stream, _EPOCHS * order.steps_per_epoch):
        bucket = step.bucket
        if len(seen) >= wanted:
            break
        if bucket.frames < FRAMES:
            continue
        for batch in step:
            for key, item in zip(batch.keys, batch.items, strict=True):
                if key not in seen:
                    seen.add(key)
                    shape = bucket.frames, bucket.height, bucket.width
                    source = json.loads(item["json"].tobytes())["source_hash"]
                    found.setdefault(source, []).extend(
                        _small(decode_planar(item["mp4"].tobytes(), shape, _WINDOWS * FRAMES))
                    )
    return found


def _small(clip: NDArray[np.uint8]) -> list[Window]:
    """Windows of a clip uint8 [3, T, H, W]."""
    count = clip.shape[1] // FRAMES
    shown = torch.from_numpy(clip[:, : count * FRAMES]).transpose(0, 1).float()
    sides, _ = vcu.covering(shown.shape[2], shown.shape[3], (_SCALE, _SCALE))
    small = functional.interpolate(shown, sides, mode="area").round().to(torch.uint8).permute(0, 2, 3, 1)
    return [window.numpy() for window in small.split(FRAMES)]
