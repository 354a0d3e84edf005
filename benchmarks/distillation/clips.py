"""Crops of the clips of a mixture, in the form of synthetic scenes.

Their control track is luma, as in VACE's task "gray". The test crops come from what the mixture holds out, by source
and by group of near duplicates.
"""

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

# The shorter side that a clip is scaled to before crops are cut.
_SCALE = 2 * SIDE
# Consecutive windows of a clip, and clips: enough for variety, and few enough for memory.
_WINDOWS, _CLIPS = 4, 256
# The stream is read until every clip has come. Damaged clips never come, so the number of epochs is limited.
_EPOCHS = 50
Window = NDArray[np.uint8]


def cut_crops(mixture: str, train: int, test: int) -> tuple[list[Scene], list[Scene], dict[str, int]]:
    """`train` crops of a mixture's training part, `test` crops of its held-out part, and the number of sources of each.

    Raises UsageError if a part has no clip that is long enough.
    """
    parts = {split: _cut_split(mixture, split, count) for split, count in ((TRAIN, train), (HELD_OUT, test))}
    (train_crops, train_sources), (test_crops, test_sources) = parts[TRAIN], parts[HELD_OUT]
    return train_crops, test_crops, {"train_sources": train_sources, "test_sources": test_sources}


def _cut_split(mixture: str, split: str, count: int) -> tuple[list[Scene], int]:
    """`count` crops, shared equally among the sources, and the number of sources."""
    sources = list(_load_windows(mixture, split).items())
    if not sources:
        raise UsageError(f"the part {split!r} of {mixture} has no clip of {FRAMES} frames")
    rng = np.random.default_rng(21)
    crops = []
    for number in range(count):
        source, windows = sources[number % len(sources)]
        window = windows[rng.integers(len(windows))]
        top, left = (rng.integers(side - SIDE + 1) for side in window.shape[1:3])
        clip = np.ascontiguousarray(window[:, top : top + SIDE, left : left + SIDE])
        hidden = np.zeros(clip.shape[:3], dtype=bool)
        y, x = rng.integers(SIDE // 2 + 1, size=2)
        hidden[:, y : y + SIDE // 2, x : x + SIDE // 2] = True
        track = scenes.luma(clip).round().astype(np.uint8)
        crops.append(Scene(clip, "", track, track > scenes.NEAR, hidden, source))
    return crops, min(len(sources), count)


def _load_windows(mixture: str, split: str) -> dict[str, list[Window]]:
    """The windows [T, H, W, 3] of scaled-down clips by the hash of their source."""
    stream = Stream(mixture, split=split, form="members")
    order = stream.order
    long_enough = [bucket for bucket in order.buckets if bucket.frames >= FRAMES]
    clip_limit = min(_CLIPS, len({int(row) for bucket in long_enough for row in order.rows(bucket)}))
    windows: dict[str, list[Window]] = {}
    keys: set[str] = set()
    for step in islice(stream, _EPOCHS * order.steps_per_epoch):
        bucket = step.bucket
        if len(keys) >= clip_limit:
            break
        if bucket.frames < FRAMES:
            continue
        for batch in step:
            for key, item in zip(batch.keys, batch.items, strict=True):
                if key not in keys:
                    keys.add(key)
                    shape = bucket.frames, bucket.height, bucket.width
                    source = json.loads(item["json"].tobytes())["source_hash"]
                    clip = decode_planar(item["mp4"].tobytes(), shape, _WINDOWS * FRAMES)
                    windows.setdefault(source, []).extend(_shrink(clip))
    return windows


def _shrink(clip: NDArray[np.uint8]) -> list[Window]:
    """Scaled-down windows of a clip uint8 [3, T, H, W]."""
    count = clip.shape[1] // FRAMES
    frames = torch.from_numpy(clip[:, : count * FRAMES]).transpose(0, 1).float()
    sides, _ = vcu.covering(frames.shape[2], frames.shape[3], (_SCALE, _SCALE))
    small = functional.interpolate(frames, sides, mode="area").round().to(torch.uint8).permute(0, 2, 3, 1)
    return [window.numpy() for window in small.split(FRAMES)]
