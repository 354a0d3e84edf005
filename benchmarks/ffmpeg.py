"""FFmpeg's own program, from the package imageio-ffmpeg: it makes small videos, and says what it decodes of a file."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg

from pipeline.errors import RunError

_PROGRAM: str = imageio_ffmpeg.get_ffmpeg_exe()
# Seconds after which a file is said not to decode.
_PATIENCE = 120


@dataclass(frozen=True, slots=True)
class Reading:
    """What the program decoded of a file's first video stream: time stamp and checksum of each frame, and what it
    complained about."""

    frames: tuple[str, ...]
    errors: tuple[str, ...]

    @property
    def is_clean(self) -> bool:
        """Whether it came to the end without a complaint."""
        return not self.errors


def make(target: Path, arguments: Iterable[str]) -> Path:
    """Make a video with the program's own arguments. Raises `RunError` with what it complained about."""
    command = [_PROGRAM, "-v", "error", "-nostdin", "-y", *arguments, str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"FFmpeg could not make {target.name}: {done.stderr.strip()}")
    return target


def read(file: Path) -> Reading:
    """Decode a file to its end, whatever is wrong with it."""
    options = ["-map", "0:v:0", "-fps_mode", "passthrough", "-f", "framecrc", "-"]
    command = [_PROGRAM, "-v", "error", "-nostdin", "-i", str(file), *options]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        return Reading((), (f"not at its end after {_PATIENCE} s",))
    # Its own header lines begin with "#"; the rest is stream, dts, pts, duration, size, checksum.
    lines = done.stdout.decode("ascii", "replace").splitlines()
    frames = tuple(line for line in lines if not line.startswith("#"))
    errors = done.stderr.decode("utf-8", "replace").strip().splitlines()
    if done.returncode and not errors:
        errors = [f"exit status {done.returncode}"]
    return Reading(frames, tuple(errors))
