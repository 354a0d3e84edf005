"""Tests that pictures are upright, in their shape and in their colours, however the file describes them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import real_clips
from av.video.reformatter import ColorRange
from numbered import LIMIT, four_corners, numbered, read_clips, write

from pipeline.video.display import Display, to_rgb
from pipeline.video.frames import read_frames
from pipeline.video.grid import Grid
from pipeline.video.probe import probe_video


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_rotation_and_mirror(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    stored = four_corners(160, 96)

    def prepare(stream: Any) -> None:
        # anticlockwise, then left and right exchanged, as FFmpeg's -display_rotation does
        stream.set_display_rotation(degrees, hflip=mirrored)

    path = write(tmp_path / "r.mp4", [stored] * 3, prepare=prepare)
    source = probe_video(path, LIMIT)
    expected = np.rot90(stored, degrees // 90)
    if mirrored:
        expected = expected[:, ::-1]
    assert (source.display.width, source.display.height) == expected.shape[1::-1]
    frame = next(read_frames(path, source)).frame
    assert frame.rotation % 360 == degrees or mirrored
    picture = to_rgb(frame, source.display, (source.display.width, source.display.height))
    assert np.abs(picture.astype(int) - expected).mean() < 6


def test_a_real_rotated_clip_is_upright() -> None:
    path, straight = real_clips.path("d_rot90.mp4"), real_clips.path("d_cuts3.mp4")
    source = probe_video(path, LIMIT)
    assert source.display == Display(360, 640, 90)
    turned = to_rgb(next(read_frames(path, source)).frame, source.display, (352, 640))
    straight_source = probe_video(straight, LIMIT)
    first = to_rgb(next(read_frames(straight, straight_source)).frame, straight_source.display, (640, 352))
    assert np.abs(np.rot90(first).astype(int) - turned).mean() < 8


def test_sample_aspect_ratio_and_odd_sizes(tmp_path: Path) -> None:
    def prepare(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    path = write(tmp_path / "s.mkv", [four_corners(175, 143)] * 3, layout="yuv444p", prepare=prepare)
    source = probe_video(path, LIMIT)
    assert (source.display.width, source.display.height) == (233, 143)
    size = Grid().size(source.display.width, source.display.height)
    assert size == (224, 128)
    picture = to_rgb(next(read_frames(path, source)).frame, source.display, size)
    assert np.abs(picture.astype(int) - four_corners(*size)).mean() < 6


def test_a_box_is_cut_out_before_scaling(tmp_path: Path) -> None:
    framed = np.zeros((160, 320, 3), np.uint8)
    framed[20:140, 80:240] = four_corners(160, 120)
    path = write(tmp_path / "boxed.mp4", [framed] * 3)
    source = probe_video(path, LIMIT)
    frame = next(read_frames(path, source)).frame
    picture = to_rgb(frame, source.display, (80, 60), (80, 20, 240, 140))
    assert np.abs(picture.astype(int) - four_corners(80, 60)).mean() < 6


@pytest.mark.parametrize(("tag", "red", "blue"), [(1, 0.2126, 0.0722), (5, 0.299, 0.114), (6, 0.299, 0.114)])
@pytest.mark.parametrize("full", [False, True])
def test_colour_matrix_and_range(tag: int, red: float, blue: float, full: bool) -> None:
    for rgb in [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 100, 50), (255, 255, 255), (0, 0, 0)]:
        assert np.abs(read_flat_frame(rgb, red, blue, full, tag, (64, 64)).astype(int) - rgb).max() <= 2


def test_an_untagged_picture_is_bt601_if_small_and_bt709_if_large() -> None:
    assert (
        np.abs(read_flat_frame((200, 60, 60), 0.299, 0.114, False, 2, (64, 64)).astype(int) - (200, 60, 60)).max() <= 2
    )
    assert (
        np.abs(read_flat_frame((200, 60, 60), 0.2126, 0.0722, False, 2, (1280, 64)).astype(int) - (200, 60, 60)).max()
        <= 2
    )


def read_flat_frame(
    rgb: tuple[int, int, int], red: float, blue: float, full: bool, tag: int, size: tuple[int, int]
) -> np.ndarray:
    """A flat yuv420p frame made with the textbook formula, read back as RGB at (48, 48)."""
    red_level, green_level, blue_level = (level / 255 for level in rgb)
    y = red * red_level + (1 - red - blue) * green_level + blue * blue_level
    u, v = (blue_level - y) / 2 / (1 - blue), (red_level - y) / 2 / (1 - red)
    levels = (255 * y, 128 + 255 * u, 128 + 255 * v) if full else (16 + 219 * y, 128 + 224 * u, 128 + 224 * v)
    frame = av.VideoFrame(*size, "yuv420p")
    for plane, level in zip(frame.planes, levels, strict=True):
        plane.update(bytes([min(255, round(level))]) * plane.buffer_size)
    frame.colorspace, frame.color_range = tag, ColorRange.JPEG if full else ColorRange.MPEG
    return to_rgb(frame, Display(*size), (48, 48))


def test_ten_bits(tmp_path: Path) -> None:
    if "libx265" not in av.codecs_available:
        pytest.skip("this FFmpeg has no HEVC encoder")
    options = {"preset": "ultrafast", "x265-params": "log-level=none"}
    path = write(tmp_path / "h.mp4", map(numbered, range(40)), codec="libx265", layout="yuv420p10le", options=options)
    assert probe_video(path, LIMIT).pix_fmt == "yuv420p10le"
    ((_, numbers),) = read_clips(path, [(0, 39)], Grid(min_frames=5)).items()
    assert numbers == [int(k / 16 * 25 + 0.03) for k in range(25)]
