"""A small source is decoded once, a large one twice, and nobody can tell from the clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline import cutting, recipe, video
from pipeline.blueprint import Blueprint
from pipeline.grid import shots_of


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Four seconds that change all the time."""
    path = tmp_path / "a.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (96, 264, 3), np.uint8)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25, width=160, height=96, pix_fmt="yuv420p")
        for index in range(100):
            picture = np.ascontiguousarray(noise[:, index : index + 160])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("budget", "decodes"), [(cutting.KEPT_BYTES, 1), (0, 2), (20 * 160 * 96, 2)])
def test_what_was_kept_is_what_is_decoded_again(
    source: Path, monkeypatch: pytest.MonkeyPatch, budget: int, decodes: int
) -> None:
    calls: list[Any] = []
    frames = video.frames
    monkeypatch.setattr(cutting, "KEPT_BYTES", budget)
    monkeypatch.setattr(video, "frames", lambda *args: calls.append(args) or frames(*args))
    blueprint = Blueprint.ingest(recipe.parse("grid: {frames: 17, min_frames: 9}", "test"), ())
    *parts, end = cutting.scan(source, blueprint)
    times = np.concatenate([part.times for part in parts if isinstance(part, cutting.Thumbs)])
    assert isinstance(end, cutting.Scanned)
    windows = blueprint.recipe.grid.windows("x", shots_of([(0, 99)], times, end.end_s), times)

    def made() -> list[tuple[Any, ...]]:
        made = cutting.clips(source, windows, (160, 96), None, {}, blueprint)
        return [(cut.values, cut.mp4, cut.preview) for cut in made]

    first = made()
    assert len(first) == len(windows) > 2
    assert len(calls) == decodes
    assert made() == first  # what was kept is given once
    assert len(calls) == decodes + 1
