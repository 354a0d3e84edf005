"""Writes videos that show each frame's number, and reads the numbers back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from pipeline.errors import ClipError, ErrorCode
from pipeline.video.frames import cut_windows, read_frames, read_thumbnails
from pipeline.video.grid import Grid, shots_of
from pipeline.video.probe import Probe, probe_video

LIMIT = 1 << 26
# Numbers are drawn as 2 rows of 5 black or white blocks that fill the picture.
ROWS, COLUMNS = 2, 5


def numbered(number: int, width: int = 160, height: int = 96) -> np.ndarray:
    bits = [(number >> bit) & 1 for bit in range(ROWS * COLUMNS)]
    blocks = np.array(bits, np.uint8).reshape(ROWS, COLUMNS) * 215 + 20
    rows = np.arange(height) * ROWS // height
    columns = np.arange(width) * COLUMNS // width
    return np.repeat(blocks[rows][:, columns, None], 3, axis=2)


def number_of(picture: np.ndarray) -> int:
    height, width = picture.shape[:2]
    y = ((np.arange(ROWS) + 0.5) * height / ROWS).astype(int)
    x = ((np.arange(COLUMNS) + 0.5) * width / COLUMNS).astype(int)
    bits = (picture[y][:, x].mean(axis=2) > 128).ravel()
    return int(sum(int(bit) << index for index, bit in enumerate(bits)))


def write(
    path: Path,
    pictures: Iterable[np.ndarray],
    pts: Sequence[int] | None = None,
    unit: Fraction = Fraction(1, 25),
    codec: str = "libx264",
    layout: str = "yuv420p",
    options: dict[str, str] | None = None,
    prepare: Callable[[Any], None] | None = None,
) -> Path:
    """Write a video file of `pictures` at `pts` (in `unit`)."""
    with av.open(path, "w") as container:
        stream = None
        for index, picture in enumerate(pictures):
            if stream is None:
                stream = container.add_stream(codec, rate=25, options=options or {})
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = layout
                stream.codec_context.time_base = unit
                if prepare:
                    prepare(stream)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(
                format=layout, dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG
            )
            frame.pts = pts[index] if pts else index
            frame.time_base = unit
            container.mux(stream.encode(frame))
        assert stream is not None
        container.mux(stream.encode(None))
    return path


def remux(source: Path, target: Path, **options: str) -> Path:
    """Write the same packets into another container, or with other options."""
    with av.open(source) as container, av.open(target, "w", options=options) as output:
        stream = output.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    return target


def code_of(path: Path, limit: int = LIMIT) -> tuple[ErrorCode, str]:
    with pytest.raises(ClipError) as caught:
        list(read_frames(path, probe_video(path, limit)))
    return caught.value.code, caught.value.detail


def read_timeline(path: Path) -> tuple[Probe, np.ndarray, float]:
    """Probe, timestamps and end."""
    source = probe_video(path, LIMIT)
    pieces = list(read_thumbnails(read_frames(path, source)))
    return source, np.concatenate([piece.times for piece in pieces]), float(pieces[-1].ends[-1])


def read_clips(path: Path, ranges: list[tuple[int, int]], grid: Grid) -> dict[float, list[int]]:
    """The frame numbers in each clip, by the clip's start."""
    source, times, end_s = read_timeline(path)
    windows = grid.windows("x", shots_of(ranges, times, end_s), times)
    size = grid.size(source.display.width, source.display.height)
    assert size is not None
    cut = {}
    for window, clip in cut_windows(read_frames(path, source), source, windows, grid.fps, size):
        assert clip.shape == (window.frames, size[1], size[0], 3)
        cut[window.start_s] = [number_of(picture) for picture in clip]
    assert list(cut) == [window.start_s for window in windows]
    return cut


def four_corners(width: int, height: int) -> np.ndarray:
    """Red, green, blue and white quarters: any turn or mirroring is visible."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = (200, 30, 30)
    picture[: height // 2, width // 2 :] = (30, 200, 30)
    picture[height // 2 :, : width // 2] = (30, 30, 200)
    picture[height // 2 :, width // 2 :] = (220, 220, 220)
    return picture
