"""Tests that files that are not videos or are truncated get a code, and that unusual ones are read completely."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import real_clips
from numbered import code_of, four_corners, numbered, read_timeline, remux, write

from pipeline.errors import ErrorCode


def audio_only(path: Path, cover: bool = False) -> Path:
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=16000)
        picture = None
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 64, 64, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if picture:
            still = av.VideoFrame.from_ndarray(four_corners(64, 64), "rgb24").reformat(format="yuvj420p")
            container.mux(picture.encode(still))
            container.mux(picture.encode(None))
    return path


def test_what_is_no_video_is_named(tmp_path: Path) -> None:
    def file(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    good = write(tmp_path / "good.mp4", map(numbered, range(4)))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{good}\n#EXT-X-ENDLIST\n".encode()
    assert code_of(tmp_path / "missing.mp4")[0] == ErrorCode.SOURCE_UNREADABLE
    assert code_of(file("empty.mp4", b""))[0] == ErrorCode.SOURCE_EMPTY
    assert code_of(file("page.mp4", b"<html>404 not found</html>" * 50))[0] == ErrorCode.NOT_VIDEO
    assert code_of(file("notes.txt", b"plain text\n" * 50))[0] == ErrorCode.NOT_VIDEO
    assert code_of(file("list.m3u8", playlist))[0] == ErrorCode.NOT_VIDEO
    assert code_of(file("random.mp4", np.random.default_rng(0).bytes(5000)))[0] == ErrorCode.NOT_VIDEO
    assert code_of(file("one byte.mp4", b"x"))[0] == ErrorCode.NOT_VIDEO
    assert code_of(audio_only(tmp_path / "a.m4a")) == (ErrorCode.NOT_VIDEO, "the file has no video stream")
    assert code_of(audio_only(tmp_path / "c.mp4", cover=True))[0] == ErrorCode.NOT_VIDEO
    assert code_of(good, 160 * 96 - 1)[0] == ErrorCode.TOO_LARGE


def test_one_frame_is_a_video(tmp_path: Path) -> None:
    source, times, end_s = read_timeline(write(tmp_path / "one.mp4", [numbered(5)]))
    assert (source.frames, times.tolist()) == (1, [0.0])
    assert end_s == pytest.approx(0.04)


@pytest.mark.parametrize("name", ["t.mp4", "t.mkv", "t.webm", "t.avi"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_file_cut_short_is_refused(tmp_path: Path, name: str, share: float) -> None:
    codec, options = ("libvpx-vp9", {"deadline": "realtime"}) if name == "t.webm" else ("mpeg4", {"b": "1M"})
    noise = np.random.default_rng(0).integers(0, 255, (150, 64, 64, 3), dtype=np.uint8)
    path = write(tmp_path / name, noise, codec=codec, options=options)
    if name == "t.mp4":  # the index first, otherwise nothing of the rest can be read
        path = remux(path, tmp_path / "f.mp4", movflags="faststart")
    read_timeline(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    code, detail = code_of(path)
    assert code == ErrorCode.DECODE_ERROR
    assert detail.startswith("decoded ")


def test_a_codec_that_nobody_knows_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "q.avi", [numbered(1)] * 5, codec="mpeg4")
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"QQ42"))
    code, detail = code_of(path)
    assert (code, detail) == (ErrorCode.NOT_VIDEO, "FFmpeg has no decoder for its video stream")


def test_sound_that_outlasts_the_picture_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "long.mkv"
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        sound = container.add_stream("aac", rate=16000)
        for index in range(25):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(index), "rgb24")))
        container.mux(stream.encode(None))
        for second in range(6):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
            frame.rate, frame.pts = 16000, second * 16000
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    assert len(read_timeline(path)[1]) == 25


@pytest.mark.parametrize(
    "name",
    [
        "d_av1.mkv",
        "d_vp9.webm",
        "d_hevc10.mp4",
        "d_rot90.mp4",
        "DVR-Scan__issue53_brightness_change.avi",
        "sample-videos__again.mkv",
        "learning-area__rabbit320.webm",
        "gradio__earth_mpeg4.avi",
        "kivy__city.mpg",
        "psychopy__bullseye.mov",
        "psychopy__talk.mp4",
    ],
)
def test_real_clips_decode_whole(name: str) -> None:
    assert len(read_timeline(real_clips.path(name))[1]) == real_clips.labels()[name]["frames"]


def test_a_real_truncated_clip_does_not_decode_whole() -> None:
    code, detail = code_of(real_clips.path("d_truncated.mp4"))
    assert code == ErrorCode.DECODE_ERROR
    assert "of 247 frames" in detail
