"""A stretch of a video: as long as asked for, of what lies there, and none of a short one."""

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


def cut(uri: str, into: Path, longest_s: float, at: float) -> tuple[float, float] | None:
    with Sandbox(2048, 30) as box:
        (found,) = box.stream("pipeline.video.excerpt:cut", uri, into, PIXELS, longest_s, at)
        lengths: tuple[float, float] | None = found
        return lengths


def tints(path: Path) -> list[int]:
    """Whether red or blue is more, frame by frame."""
    probe = probe_video(path, PIXELS)
    pictures = [thumbnail(decoded.frame).mean(axis=(0, 1)) for decoded in read_frames(path, probe)]
    return [int(picture[0] > picture[2]) for picture in pictures]


def test_a_long_video_gives_a_stretch_from_where_it_is_asked_for(tmp_path: Path) -> None:
    # Four shots, bluish and reddish in turn, of 60 frames at 16 a second: 15 s.
    whole = small_videos.write(tmp_path / "whole.mp4", 1, shots=4, count=60, group=15)
    shown = {}
    for at in (0.0, 1.0):
        found = cut(str(whole), tmp_path / f"{at}.mkv", 3.0, at)
        assert found is not None
        whole_s, taken_s = found
        assert whole_s == pytest.approx(15, abs=0.1)
        # From the key frame before, to the first packet after three seconds.
        assert taken_s == pytest.approx(3, abs=0.2)
        shown[at] = tints(tmp_path / f"{at}.mkv")
        assert len(shown[at]) == pytest.approx(3 * small_videos.FPS, abs=3)
    assert np.mean(shown[0.0]) < 0.1
    assert np.mean(shown[1.0]) > 0.9


def test_a_stretch_comes_out_of_a_url(tmp_path: Path, s3: Any) -> None:
    whole = small_videos.write(tmp_path / "whole.mp4", 1, shots=60, count=160, grain=1, group=15)
    store, _ = filesystem(s3.url)
    store.put_file(str(whole), f"{s3.bucket}/whole.mp4")
    found = cut(f"{s3.url}/whole.mp4", tmp_path / "stretch.mkv", 3.0, 0.5)
    assert found is not None
    assert found[0] == pytest.approx(600, abs=1)
    assert len(tints(tmp_path / "stretch.mkv")) >= 3 * small_videos.FPS - 1


def test_a_short_video_stands_for_itself(tmp_path: Path) -> None:
    whole = small_videos.write(tmp_path / "whole.mp4", 1)
    assert cut(str(whole), tmp_path / "none.mkv", 60.0, 0.5) is None
    assert not (tmp_path / "none.mkv").exists()


def test_what_is_no_video_is_said(tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    with pytest.raises(ClipError):
        cut(str(text), tmp_path / "none.mkv", 60.0, 0.5)
