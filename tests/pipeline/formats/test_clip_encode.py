"""Tests our own clips: all frames come back in their colours, and the same frames give the same bytes."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import real_clips
from numbered import four_corners, number_of, numbered

from annotators.flow import Flow
from pipeline.errors import ClipError, ErrorCode
from pipeline.formats import clip_decode
from pipeline.formats.clip_decode import decode_clip
from pipeline.formats.clip_encode import encode_clip, encode_png
from pipeline.video.frames import cut_windows, read_frames
from pipeline.video.grid import Window
from pipeline.video.probe import probe_video


@pytest.mark.long
def test_bytes_do_not_depend_on_what_memory_held() -> None:
    path = real_clips.path("FastGen__02_two_cyclists_stop_sign.mp4")
    source = probe_video(path, 1 << 24)
    window = Window("x", 0.0, 5.0, 81)
    ((_, frames),) = cut_windows(read_frames(path, source), source, [window], 16.0, (832, 480))
    # x264's macroblock tree gives two results here: it reads memory that an earlier encoder wrote.
    track = Flow()(frames, 16.0).tracks["flow"]
    assert len({hashlib.sha256(encode_clip(track, 16.0)).digest() for _ in range(4)}) == 1


def test_a_clip_comes_back_frame_for_frame_in_its_colours(tmp_path: Path) -> None:
    frames = np.stack([numbered(index) for index in range(33)])
    mp4 = encode_clip(frames, 16.0)
    assert mp4 == encode_clip(frames, 16.0)
    assert mp4.index(b"moov") < mp4.index(b"mdat")
    assert not any(word in mp4 for word in (b"x264", b"Lavf", b"Lavc"))
    assert [number_of(picture) for picture in decode_clip(mp4)] == list(range(33))
    with av.open(io.BytesIO(mp4)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.pts is not None]
        assert [packet.pts for packet in packets] == [packet.dts for packet in packets]
        assert float(packets[-1].pts * packets[-1].time_base) == 2.0

    colours = np.stack([four_corners(160, 96)] * 5)
    mp4 = encode_clip(colours, 16.0)
    (tmp_path / "c.mp4").write_bytes(mp4)
    ours = decode_clip(mp4)[2]
    is_read, theirs = cv2.VideoCapture(str(tmp_path / "c.mp4")).read()
    assert is_read
    with av.open(io.BytesIO(mp4)) as container:
        naive = next(container.decode(video=0)).to_ndarray(format="rgb24")
    for picture, tolerance in ((ours, 2), (theirs[..., ::-1], 4), (naive, 4)):
        for y, x in ((20, 30), (20, 130), (70, 30), (70, 130)):
            assert np.abs(picture[y, x].astype(int) - colours[0, y, x]).max() <= tolerance


def test_a_damaged_clip_of_ours_is_refused() -> None:
    mp4 = encode_clip(np.random.default_rng(0).integers(0, 255, (9, 64, 64, 3), dtype=np.uint8), 16.0)
    for damaged in (b"", b"no clip", mp4[: len(mp4) // 2]):
        with pytest.raises(ClipError) as caught:
            decode_clip(damaged)
        assert caught.value.code == ErrorCode.CLIP_DAMAGED


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (48, 64)])
def test_a_png_gives_the_picture_back(size: tuple[int, int]) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    data = encode_png(picture)
    assert np.array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB), picture)
    assert data == encode_png(picture)
    np.testing.assert_array_equal(clip_decode.decode_png(data), picture)
    with pytest.raises(ClipError, match="a clip's picture cannot be read"):
        clip_decode.decode_png(data[:20])
