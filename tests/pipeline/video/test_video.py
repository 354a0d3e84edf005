"""Tests that the frame of every grid point follows the source's timestamps."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numbered import LIMIT, number_of, numbered, read_clips, read_timeline, write

from pipeline.video.content_box import find_content_box
from pipeline.video.frames import cut_windows, read_frames, read_thumbnails
from pipeline.video.grid import Grid, shots_of
from pipeline.video.probe import probe_video


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("b.mp4", "libx264", {"bf": "3", "preset": "veryfast"}),
        ("b.mkv", "libx264", {"bf": "3", "preset": "veryfast"}),
        ("v.webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
        ("m.avi", "mpeg4", {"b": "2M"}),
    ],
)
def test_grid_points_show_the_frame_of_their_time(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    path = write(tmp_path / name, map(numbered, range(130)), codec=codec, options=options)
    clips = read_clips(path, [(0, 59), (60, 129)], Grid(frames=33, min_frames=5))
    assert [(round(start, 2), len(numbers)) for start, numbers in clips.items()] == [
        (0.0, 33),
        (2.06, 5),
        (2.4, 33),
        (4.46, 9),
    ]
    for start, numbers in clips.items():
        last = 59 if start < 2.4 else 129
        expected = [min(int((start + k / 16 + 1.01e-3) * 25), last) for k in range(len(numbers))]
        assert numbers == expected


def test_variable_frame_rate(tmp_path: Path) -> None:
    pts = np.cumsum([0, 1, 40, 200, 3, 77, 500, 12, 12, 900, 33, 41, 41, 300, 80]).tolist()
    path = write(tmp_path / "vfr.mp4", map(numbered, range(len(pts))), pts=pts, unit=Fraction(1, 1000))
    _, times, _ = read_timeline(path)
    np.testing.assert_allclose(times, np.array(pts) / 1000, atol=1e-4)
    ((_, numbers),) = read_clips(path, [(0, len(pts) - 1)], Grid(min_frames=5)).items()
    expected = [int(np.searchsorted(pts, k * 62.5 + 1.01, side="right")) - 1 for k in range(len(numbers))]
    assert numbers == expected


def write_trimmed(folder: Path, frames: int, options: dict[str, str]) -> Path:
    """100 numbered frames, of which an edit list cuts off the first so many."""
    plain = write(folder / "plain.mp4", map(numbered, range(100)), options=options)
    path = folder / "trimmed.mp4"
    with av.open(plain) as source, av.open(path, "w", options={"avoid_negative_ts": "disabled"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None and packet.pts is not None:
                shift = round(Fraction(frames, 25) / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = stream
                target.mux(packet)
    return path


def test_an_edit_list_cuts_off_the_start(tmp_path: Path) -> None:
    path = write_trimmed(tmp_path, 10, {"bf": "2", "g": "50"})
    _, times, end_s = read_timeline(path)
    assert (len(times), times[0]) == (90, 0.0)
    assert end_s == pytest.approx(3.6)
    ((_, numbers),) = read_clips(path, [(0, 89)], Grid(min_frames=5)).items()
    assert numbers[:4] == [10, 11, 13, 14]


def test_some_of_the_windows_and_memory_of_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", map(numbered, range(130)))
    source, times, end_s = read_timeline(path)
    grid = Grid(frames=17, min_frames=5)
    windows = grid.windows("x", shots_of([(0, 129)], times, end_s), times)
    chosen = [windows[3], windows[1]]
    clips = cut_windows(read_frames(path, source), source, chosen, 16.0, (144, 96))
    numbers = [(window, number_of(clip[0])) for window, clip in clips]
    assert numbers == [(windows[1], int(17 / 16 * 25)), (windows[3], int(51 / 16 * 25))]


@pytest.mark.parametrize("name", ["p.mp4", "p.mkv"])
def test_progress_is_told_long_before_the_first_clip(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, map(numbered, range(130)), options={"bf": "3"})
    source, times, end_s = read_timeline(path)
    calls: list[None] = []

    def progress() -> None:
        calls.append(None)

    last = Grid(frames=17, min_frames=5).windows("x", shots_of([(0, 129)], times, end_s), times)[-1]
    decoded = read_frames(path, source, progress)
    assert [window for window, _ in cut_windows(decoded, source, [last], 16.0, (144, 96))] == [last]
    assert 100 < len(calls) < 300
    calls.clear()
    list(read_thumbnails(read_frames(path, source, progress)))
    assert len(calls) > 129
    calls.clear()
    find_content_box(path, source, progress)
    assert len(calls) > 129


def test_progress_is_told_while_nothing_is_shown(tmp_path: Path) -> None:
    """An edit list that begins late: the frames before it are decoded and dropped."""
    path = write_trimmed(tmp_path, 90, {"bf": "0", "g": "200"})
    calls: list[None] = []
    decoded = list(read_frames(path, probe_video(path, LIMIT), lambda: calls.append(None)))
    assert len(decoded) == 10
    assert len(calls) >= 100
