"""Tests excerpts of videos: the requested length and position, and none of a short video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_videos

from pipeline.errors import ClipError
from pipeline.storage.object_store import filesystem
from pipeline.video.display import thumbnail
from pipeline.video.frames import read_frames
from pipeline.video.probe import probe_video
from pipeline.video.sandbox import Sandbox

PIXELS = 10**8


def cut_excerpt(uri: str, into: Path, longest_s: float, position: float) -> tuple[float, float] | None:
    with Sandbox(2048, 30) as box:
        (result,) = box.stream("pipeline.video.excerpt:cut", uri, into, PIXELS, longest_s, position)
        lengths: tuple[float, float] | None = result
        return lengths


def read_tints(path: Path) -> list[int]:
    """Whether there is more red than blue, frame by frame."""
    probe = probe_video(path, PIXELS)
    pictures = [thumbnail(decoded.frame).mean(axis=(0, 1)) for decoded in read_frames(path, probe)]
    return [int(picture[0] > picture[2]) for picture in pictures]


def test_a_long_video_gives_a_stretch_from_where_it_is_asked_for(tmp_path: Path) -> None:
    # Four shots, alternately bluish and reddish, of 60 frames at 16 per second: 15 s.
    video = small_videos.write(tmp_path / "whole.mp4", 1, shots=4, count=60, group=15)
    tints = {}
    for position in (0.0, 1.0):
        lengths = cut_excerpt(str(video), tmp_path / f"{position}.mkv", 3.0, position)
        assert lengths is not None
        video_s, excerpt_s = lengths
        assert video_s == pytest.approx(15, abs=0.1)
        # From the previous key frame to the first packet after three seconds.
        assert excerpt_s == pytest.approx(3, abs=0.2)
        tints[position] = read_tints(tmp_path / f"{position}.mkv")
        assert len(tints[position]) == pytest.approx(3 * small_videos.FPS, abs=3)
    assert np.mean(tints[0.0]) < 0.1
    assert np.mean(tints[1.0]) > 0.9


def test_a_stretch_comes_out_of_a_url(tmp_path: Path, s3: Any) -> None:
    video = small_videos.write(tmp_path / "whole.mp4", 1, shots=60, count=160, grain=1, group=15)
    store, _ = filesystem(s3.url)
    store.put_file(str(video), f"{s3.bucket}/whole.mp4")
    lengths = cut_excerpt(f"{s3.url}/whole.mp4", tmp_path / "stretch.mkv", 3.0, 0.5)
    assert lengths is not None
    assert lengths[0] == pytest.approx(600, abs=1)
    assert len(read_tints(tmp_path / "stretch.mkv")) >= 3 * small_videos.FPS - 1


def test_a_short_video_stands_for_itself(tmp_path: Path) -> None:
    video = small_videos.write(tmp_path / "whole.mp4", 1)
    assert cut_excerpt(str(video), tmp_path / "none.mkv", 60.0, 0.5) is None
    assert not (tmp_path / "none.mkv").exists()


def test_what_is_no_video_is_said(tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    with pytest.raises(ClipError):
        cut_excerpt(str(text), tmp_path / "none.mkv", 60.0, 0.5)
