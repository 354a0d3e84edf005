"""Reading of arbitrary videos and pictures for `vdot-train sample`, in the same way as ingest reads its sources."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.errors import ClipError, UsageError
from pipeline.video.frames import DecodedFrame, collect_times, cut_windows, read_frames
from pipeline.video.grid import Grid, shots_of
from pipeline.video.probe import probe_video

Frames = NDArray[np.uint8]
FPS = 16.0
"""Frames a second of the grid, at which Wan was trained."""

# The limit of pixels in a frame: more than any camera makes.
_MAX_PIXELS = 1 << 28
_PICTURES = ("PNG", "JPEG", "WEBP")


def read_video(file: Path, shape: tuple[int, int, int]) -> Frames:
    """The first T frames of a video on the grid of 16 frames a second, upright, in square pixels, scaled to cover H x W
    and center-cropped, black where it is transparent: uint8 [T, H, W, 3] RGB.

    They equal the first clip that ingest makes of a video of one shot. Raises UsageError if it cannot be read or is too
    short, also because of a long pause, which ends a clip.
    """
    length, height, width = shape
    try:
        grid = Grid(FPS, length, min_frames=1)
    except ValueError as error:
        raise UsageError(f"--frames: {error}") from error
    try:
        source = probe_video(file, _MAX_PIXELS)
        with closing(read_frames(file, source)) as decoded:
            frame_times = collect_times(_take_seconds(decoded, length / FPS))
        shot = shots_of([(0, len(frame_times.times) - 1)], *frame_times)[0]
        window = grid.windows("", [shot], frame_times.times)[0]
        if window.frames < length:
            available = f"{file} has {window.frames} frames at 16 a second"
            raise UsageError(f"{available}, and {length} are needed: --frames")
        with closing(read_frames(file, source)) as decoded:
            ((_, frames),) = cut_windows(decoded, source, [window], FPS, (width, height))
    except ClipError as error:
        raise UsageError(f"{file} cannot be read as a video ({error.detail})") from error
    return frames


def _take_seconds(decoded: Iterator[DecodedFrame], seconds: float) -> Iterator[DecodedFrame]:
    """The frames up to the first one that begins more than `seconds` after the first."""
    start_s = math.inf
    for frame in decoded:
        yield frame
        start_s = min(start_s, frame.time_s)
        if frame.time_s > start_s + seconds:
            return


def read_picture(file: Path) -> Frames:
    """A picture (PNG, JPEG or WebP) as uint8 [h, w, 3] RGB, upright, white where it is transparent.

    Read by Pillow, which applies the EXIF orientation, because PyAV does not report it for pictures with EXIF. Raises
    UsageError if it cannot be read.
    """
    try:
        with Image.open(file, formats=_PICTURES) as opened:
            picture = ImageOps.exif_transpose(opened)
    # Pillow raises SyntaxError for a broken PNG.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"{file} cannot be read as a picture, PNG, JPEG or WebP ({error})") from error
    if picture.mode.startswith("I"):
        # 16 bits of gray, which Pillow would clip at 255.
        gray = np.rint(np.asarray(picture, np.float64) / 257).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    opaque = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(opaque, picture.convert("RGBA")).convert("RGB"))
