"""Videos and pictures of anybody's, as `vdot-train sample` takes them: read as ingest reads its sources."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.errors import ClipError, UsageError
from pipeline.video.frames import cut_windows, read_frames
from pipeline.video.grid import Grid, shots_of
from pipeline.video.probe import Probe, probe_video

Frames = NDArray[np.uint8]
FPS = 16.0
"""The grid's frames a second, at which Wan was trained."""

# What is decoded, in pixels a frame: more than any camera makes.
_MOST_PIXELS = 1 << 28
_PICTURES = ("PNG", "JPEG", "WEBP")


def read_video(file: Path, shape: tuple[int, int, int]) -> Frames:
    """The first T frames of a video on the grid of 16 frames a second, upright, in square pixels, scaled to cover H x W
    and cut in the middle, black where it is transparent: uint8 [T, H, W, 3] RGB.

    They are those of the first clip that ingest makes of a video of one shot. Raises UsageError where it cannot be read
    or is shorter: also where it pauses for long, which ends a clip.
    """
    length, height, width = shape
    try:
        grid = Grid(FPS, length, min_frames=1)
    except ValueError as error:
        raise UsageError(f"--frames: {error}") from error
    try:
        source = probe_video(file, _MOST_PIXELS)
        times, joined, end_s = _begin(file, source, length / FPS)
        shot = shots_of([(0, len(times) - 1)], times, end_s, joined)[0]
        window = grid.windows("", [shot], times)[0]
        if window.frames < length:
            has = f"{file} has {window.frames} frames at 16 a second"
            raise UsageError(f"{has}, and {length} are needed: --frames")
        with closing(read_frames(file, source)) as decoded:
            ((_, frames),) = cut_windows(decoded, source, [window], FPS, (width, height))
    except ClipError as error:
        raise UsageError(f"{file} cannot be read as a video ({error.detail})") from error
    return frames


def _begin(file: Path, source: Probe, seconds: float) -> tuple[NDArray[np.float64], NDArray[np.bool_], float]:
    """The times of a video's frames up to the first one so many seconds after its begin, whether each goes on from the
    one before it, and when the last of them ends."""
    times: list[float] = []
    joined: list[bool] = []
    end_s = 0.0
    with closing(read_frames(file, source)) as decoded:
        for frame in decoded:
            times.append(frame.time_s)
            joined.append(frame.joined)
            end_s = frame.time_s + frame.duration_s
            if frame.time_s > times[0] + seconds:
                break
    return np.array(times), np.array(joined), end_s


def read_picture(file: Path) -> Frames:
    """A picture (PNG, JPEG or WebP) as uint8 [h, w, 3] RGB, upright, white where it is transparent.

    By Pillow, as it knows where a camera's up is: of what FFmpeg says of that PyAV understands nothing where a picture
    has EXIF. Raises UsageError where it cannot be read.
    """
    try:
        with Image.open(file, formats=_PICTURES) as opened:
            picture = ImageOps.exif_transpose(opened)
    # SyntaxError: a PNG that is broken.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"{file} cannot be read as a picture, PNG, JPEG or WebP ({error})") from error
    if picture.mode.startswith("I"):
        # 16 bits of gray, which Pillow would cut off at 255.
        gray = np.rint(np.asarray(picture, np.float64) / 257).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    opaque = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(opaque, picture.convert("RGBA")).convert("RGB"))
