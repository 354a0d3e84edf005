"""Tests that a small source is decoded once and a large one twice, with the same clips."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numbered import remux, write

from pipeline.recipe import recipe
from pipeline.recipe.blueprint import Blueprint
from pipeline.stages import sandboxed
from pipeline.video.frames import ThumbnailChunk, read_frames
from pipeline.video.grid import shots_of
from pipeline.video.probe import probe_video


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Four seconds that change in every frame."""
    noise = np.random.default_rng(0).integers(0, 255, (96, 264, 3), np.uint8)
    pictures = (np.ascontiguousarray(noise[:, index : index + 160]) for index in range(100))
    return write(tmp_path / "a.mp4", pictures)


@pytest.mark.parametrize(("budget", "decodes"), [(sandboxed.KEPT_BYTES, 1), (0, 2), (20 * 160 * 96, 2)])
def test_what_was_kept_is_what_is_decoded_again(
    source: Path, monkeypatch: pytest.MonkeyPatch, budget: int, decodes: int
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(sandboxed, "KEPT_BYTES", budget)
    monkeypatch.setattr(sandboxed, "read_frames", lambda *args: calls.append(args) or read_frames(*args))
    blueprint = Blueprint.for_ingest(recipe.parse("grid: {frames: 17, min_frames: 9}", "test"), ())
    *parts, end = sandboxed.scan(source, blueprint)
    times = np.concatenate([part.times for part in parts if isinstance(part, ThumbnailChunk)])
    assert isinstance(end, sandboxed.ScanResult)
    windows = blueprint.recipe.grid.windows("x", shots_of([(0, 99)], times, end.end_s), times)

    def cut_clips() -> list[tuple[Any, ...]]:
        clips = sandboxed.cut_clips(source, windows, (160, 96), None, {}, blueprint)
        return [(clip.window, clip.signals, clip.verdict, clip.mp4, clip.preview) for clip in clips]

    first = cut_clips()
    assert len(first) == len(windows) > 2
    assert len(calls) == decodes
    assert cut_clips() == first  # kept frames are used only once
    assert len(calls) == decodes + 1


def test_what_a_rule_cannot_take_in_one_clip_leaves_the_others_alone(tmp_path: Path) -> None:
    pictures = (np.full((96, 160, 3), 200 if index < 17 else 60, np.uint8) for index in range(51))
    path = write(tmp_path / "a.mp4", pictures, unit=Fraction(1, 16))
    text = "grid: {frames: 17, min_frames: 17}\nfilters: [luma]\ntasks: {}\nstages: [[scribble]]\n"
    text += "rules: {odd: \"CAST(CASE WHEN luma > 100 THEN 'bright' ELSE '1' END AS INT) > 3\"}"
    blueprint = Blueprint.for_ingest(recipe.parse(text, "test"), ())
    probe = probe_video(path, 1 << 20)
    times = np.array([decoded.time_s for decoded in read_frames(path, probe)])
    windows = blueprint.recipe.grid.windows("x", shots_of([(0, 50)], times, 51 / 16), times)
    clips = list(sandboxed.cut_clips(path, windows, (160, 96), None, {}, blueprint))
    assert [clip.verdict.get("code") for clip in clips] == ["RULE_ERROR", None, None]
    assert [clip.mp4 is None for clip in clips] == [True, False, False]
    assert clips[0].preview is not None


def test_a_source_may_begin_at_any_time(source: Path, tmp_path: Path) -> None:
    late = remux(source, tmp_path / "late.ts", output_ts_offset="50000")
    text = "grid: {frames: 17, min_frames: 9}\ncrop_bars: true\nlimits: {duration_s: 60}"
    *parts, end = sandboxed.scan(late, Blueprint.for_ingest(recipe.parse(text, "test"), ()))
    assert isinstance(end, sandboxed.ScanResult)
    first = parts[0]
    assert isinstance(first, ThumbnailChunk)
    assert first.times[0] > 49_000
    assert end.end_s - first.times[0] == pytest.approx(4.0, abs=0.1)
