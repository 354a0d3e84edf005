"""Frames of the shared real clips, for tests of perception; without the clip or the weights a test is skipped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from numbered import LIMIT

from annotators import weights
from pipeline import video

T = TypeVar("T")

CLIPS = Path(__file__).parents[2].parent / "shared/clips"


def frames(name: str, count: int, *, every: int = 1, **size: int) -> Any:
    """The first `count` of every `every`-th frame, uint8 [count, H, W, 3]; `size`: width and height to scale to."""
    path = CLIPS / name
    if not path.exists():
        pytest.skip(f"the clip {name} is not on this machine")
    found = []
    for number, (_, _, frame, _, _) in enumerate(video.frames(path, video.probe(path, LIMIT))):
        if number % every == 0:
            found.append(frame.reformat(format="rgb24", **size).to_ndarray())
        if len(found) == count:
            break
    return np.stack(found)


def loaded(made: Callable[[], T]) -> T:
    """What needs weights, made."""
    try:
        return made()
    except weights.MissingWeights as missing:
        pytest.skip(str(missing))
