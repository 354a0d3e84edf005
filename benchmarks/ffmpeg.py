"""Runs FFmpeg's own program, from the package imageio-ffmpeg, to make small videos and to decode files."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg

from pipeline.errors import RunError

_PROGRAM: str = imageio_ffmpeg.get_ffmpeg_exe()
# Seconds after which a file counts as not decodable.
_PATIENCE = 120


@dataclass(frozen=True, slots=True)
class Reading:
    """What the program decoded of a file's first video stream: a line with time stamps and checksum for each frame, and
    its error messages."""

    frames: tuple[str, ...]
    errors: tuple[str, ...]

    @property
    def is_clean(self) -> bool:
        """Whether it decoded everything without an error."""
        return not self.errors


def make_video(target: Path, arguments: Iterable[str]) -> Path:
    """Make a video with the program's own arguments. Raises `RunError` with its error message."""
    command = [_PROGRAM, "-v", "error", "-nostdin", "-y", *arguments, str(target)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RunError(f"FFmpeg could not make {target.name}: {process.stderr.strip()}")
    return target


def decode(file: Path) -> Reading:
    """Decode a file to its end, whatever is wrong with it."""
    options = ["-map", "0:v:0", "-fps_mode", "passthrough", "-f", "framecrc", "-"]
    command = [_PROGRAM, "-v", "error", "-nostdin", "-i", str(file), *options]
    try:
        process = subprocess.run(command, capture_output=True, check=False, timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        return Reading((), (f"not at its end after {_PATIENCE} s",))
    # Header lines begin with "#"; the others are stream, dts, pts, duration, size, checksum.
    lines = process.stdout.decode("ascii", "replace").splitlines()
    frames = tuple(line for line in lines if not line.startswith("#"))
    errors = process.stderr.decode("utf-8", "replace").strip().splitlines()
    if process.returncode and not errors:
        errors = [f"exit status {process.returncode}"]
    return Reading(frames, tuple(errors))
