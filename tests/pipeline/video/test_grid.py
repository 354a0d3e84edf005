"""Tests the grid: the properties of sizes and windows hold for any source."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.video.grid import Grid, Shot, Window, compute_clip_id, shots_of

GRIDS = st.builds(
    lambda fps, frames, min_frames, area, half_multiple: Grid(
        fps,
        4 * frames + 1,
        4 * min(frames, min_frames) + 1,
        max(area, 4 * half_multiple * half_multiple),
        2 * half_multiple,
    ),
    st.floats(1, 60),
    st.integers(0, 30),
    st.integers(0, 30),
    st.integers(4, 1 << 20),
    st.integers(1, 32),
)
SIDES = st.integers(1, 9000)


@given(GRIDS, SIDES, SIDES)
def test_a_size_is_bounded_aligned_and_never_larger_than_the_source(grid: Grid, width: int, height: int) -> None:
    size = grid.size(width, height)
    if size is None:
        scale = min(1, (grid.area / (width * height)) ** 0.5)
        assert min(width, height) * scale < grid.multiple + 1e-6
        return
    assert all(side > 0 and side % grid.multiple == 0 for side in size)
    assert size[0] <= width
    assert size[1] <= height
    assert size[0] * size[1] <= grid.area
    cover = max(size[0] / width, size[1] / height)
    lost = width * cover - size[0] + height * cover - size[1]
    assert lost <= grid.multiple * max(width / height, height / width) + 1e-6


@pytest.mark.parametrize(
    ("source", "size"),
    [
        ((832, 480), (832, 480)),
        ((1664, 960), (832, 480)),
        ((1280, 720), (832, 464)),
        ((720, 1280), (464, 832)),
        ((3840, 2160), (832, 464)),
        ((640, 360), (640, 352)),
        ((17, 17), (16, 16)),
        ((15, 400), None),
        ((100_000, 20), None),
    ],
)
def test_known_sizes(source: tuple[int, int], size: tuple[int, int] | None) -> None:
    assert Grid().size(*source) == size


@pytest.mark.parametrize(
    "wrong",
    [
        {"fps": 0},
        {"fps": float("nan")},
        {"frames": 80},
        {"min_frames": 34},
        {"min_frames": 85},
        {"multiple": 15},
        {"area": 255},
    ],
)
def test_a_wrong_grid_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Grid(**wrong)  # type: ignore[arg-type]


def test_two_seconds_at_16_fps_have_33_points() -> None:
    times = np.arange(50) / 25
    (window,) = Grid().windows("x", shots_of([(0, 49)], times, 2.0), times)
    assert (window.start_s, window.end_s, window.frames) == (0.0, 1.96, 33)
    assert not Grid().windows("x", shots_of([(0, 48)], times, 2.0), times)


def test_windows_are_cut_greedily_and_a_remainder_is_floored() -> None:
    times = np.arange(250) / 25
    windows = Grid().windows("x", shots_of([(0, 249)], times, 10.0), times)
    assert [window.frames for window in windows] == [81, 77]
    assert windows[1].start_s == 81 / 16
    assert windows[0].end_s == 5.0


@st.composite
def cut_videos(draw: st.DrawFn) -> tuple[np.ndarray, float, list[tuple[int, int]]]:
    steps = draw(st.lists(st.integers(2, 400), min_size=1, max_size=120))
    times = draw(st.integers(-1000, 1000)) / 1000 + np.cumsum([0, *steps[:-1]]) / 1000
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(steps) - 1)), max_size=4)))
    edges = [0, *(cut for cut in cuts if cut < len(steps)), len(steps)]
    ranges = [(first, next_first - 1) for first, next_first in pairwise(edges)]
    return times, float(times[-1]) + steps[-1] / 1000, ranges


@given(GRIDS, cut_videos())
def test_a_window_never_shows_another_shot(grid: Grid, video: tuple[np.ndarray, float, list]) -> None:
    times, end_s, ranges = video
    ids: set[str] = set()
    for shot in shots_of(ranges, times, end_s):
        windows = grid.windows("hash", [shot], times)
        points = int((shot.end_s - shot.start_s + 2e-3) * grid.fps) + 1
        assert sum(window.frames for window in windows) <= points
        for window in windows:
            assert window.frames % 4 == 1
            assert grid.min_frames <= window.frames <= grid.frames
            indices = np.searchsorted(times, window.limits(grid.fps), side="right") - 1
            assert (np.diff(indices) >= 0).all()
            assert shot.first <= indices[0]
            assert indices[-1] <= shot.last
            assert abs(times[indices[-1]] - window.end_s) <= 1e-6
            # each point shows the frame that a player shows at that time, or one that starts within 1 ms
            played = np.searchsorted(times, window.start_s + np.arange(window.frames) / grid.fps, "right") - 1
            delays = times[indices] - (window.start_s + np.arange(window.frames) / grid.fps)
            assert (delays <= 1.01e-3).all()
            assert (indices >= np.minimum(np.clip(played, shot.first, None), shot.last)).all()
        ids |= {window.clip_id for window in windows}
    assert len(ids) == sum(len(grid.windows("hash", [shot], times)) for shot in shots_of(ranges, times, end_s))


def test_an_id_depends_on_content_times_and_grid_alone() -> None:
    grid = Grid()
    name = compute_clip_id("hash", 0.0, 5.0, grid)
    assert len(name) == 32
    assert set(name) <= set("0123456789abcdef")
    assert name == compute_clip_id("hash", 1e-8, 5.0, replace(grid, fps=16))
    other_ids = [
        compute_clip_id("other", 0.0, 5.0, grid),
        compute_clip_id("hash", 1e-6, 5.0, grid),
        compute_clip_id("hash", 0.0, 5.04, grid),
        compute_clip_id("hash", 0.0, 5.0, grid, crop=True),
        compute_clip_id("hash", 0.0, 5.0, replace(grid, fps=24)),
        compute_clip_id("hash", 0.0, 5.0, replace(grid, frames=49)),
        compute_clip_id("hash", 0.0, 5.0, replace(grid, min_frames=49)),
        compute_clip_id("hash", 0.0, 5.0, replace(grid, area=1 << 20)),
        compute_clip_id("hash", 0.0, 5.0, replace(grid, multiple=8)),
    ]
    assert len({name, *other_ids}) == 10


def test_a_transition_belongs_to_no_shot() -> None:
    times = np.arange(10) / 2
    assert shots_of([(0, 3), (6, 9)], times, 5.0) == [Shot(0, 3, 0.0, 2.0), Shot(6, 9, 3.0, 5.0)]
    assert Window("", 0.0, 1.5, 5).limits(2.0).tolist() == pytest.approx([0.001, 0.501, 1.001, 1.5, 1.5], abs=2e-6)
