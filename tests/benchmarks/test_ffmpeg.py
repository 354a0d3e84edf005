"""Tests of what runs FFmpeg's program."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import ffmpeg
from pipeline.errors import RunError

PICTURE = ("-f", "lavfi", "-i", "testsrc=size=64x64:rate=8:duration=1")


def test_only_decoding_has_a_limit_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that hangs the decoder is a result. Making a long video takes as long as it takes."""
    monkeypatch.setattr(ffmpeg, "_PATIENCE", 1e-6)
    video = ffmpeg.make_video(tmp_path / "a.mp4", PICTURE)
    assert ffmpeg.decode(video).errors == ("not at its end after 1e-06 s",)
    monkeypatch.undo()
    assert len(ffmpeg.decode(video).frames) == 8


def test_a_command_that_fails_is_an_error_with_its_output(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"Error opening input file .*nothing\.mp4"):
        ffmpeg.run("-v", "error", "-i", tmp_path / "nothing.mp4", tmp_path / "a.mp4")
