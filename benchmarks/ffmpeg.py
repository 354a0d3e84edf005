"""Runs FFmpeg's own program, from the package imageio-ffmpeg, to make small videos and to decode files."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline.errors import RunError

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


@cache
def program() -> str:
    """The path of the program: a static build, which PyAV does not use."""
    import imageio_ffmpeg

    return str(imageio_ffmpeg.get_ffmpeg_exe())


def run(*arguments: object, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run one command with the program's own arguments; it replaces existing files. Raises `RunError` with the end of
    its output if it fails."""
    process = _run_program(arguments, stdin)
    if process.returncode:
        output = process.stderr.decode(errors="replace").strip()[-2000:]
        raise RunError(f"FFmpeg failed: {' '.join(map(str, arguments))}\n{output}")
    return process


def make_video(target: Path, arguments: Iterable[str]) -> Path:
    """Make a video with the program's own arguments. Raises `RunError` with its error message."""
    run("-v", "error", *arguments, target)
    return target


def decode(file: Path) -> Reading:
    """Decode a file to its end, whatever is wrong with it."""
    options = ("-map", "0:v:0", "-fps_mode", "passthrough", "-f", "framecrc", "-")
    try:
        process = _run_program(("-v", "error", "-i", file, *options), limit_s=_PATIENCE)
    except subprocess.TimeoutExpired:
        return Reading((), (f"not at its end after {_PATIENCE} s",))
    # Header lines begin with "#"; the others are stream, dts, pts, duration, size, checksum.
    lines = process.stdout.decode("ascii", "replace").splitlines()
    frames = tuple(line for line in lines if not line.startswith("#"))
    errors = process.stderr.decode("utf-8", "replace").strip().splitlines()
    if process.returncode and not errors:
        errors = [f"exit status {process.returncode}"]
    return Reading(frames, tuple(errors))


def _run_program(
    arguments: Iterable[object], stdin: bytes | None = None, limit_s: float | None = None
) -> subprocess.CompletedProcess[bytes]:
    options = ["-y", "-hide_banner", "-nostats", *([] if stdin is not None else ["-nostdin"])]
    return subprocess.run(
        [program(), *options, *map(str, arguments)], input=stdin, capture_output=True, check=False, timeout=limit_s
    )
