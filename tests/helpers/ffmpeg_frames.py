"""Frames as FFmpeg's own program shows them, an independent reference."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.ffmpeg import run

_TIME_BASE = re.compile(r"config in time_base: (\d+)/(\d+)")
_FRAME = re.compile(r"n: *\d+ pts: *(-?\d+|NOPTS) .*?duration: *(-?\d+) .*?fmt:(\S+) .*?sar:(\d+)/(\d+) s:(\d+)x(\d+)")
# As exact as swscale can be, so that its fast paths never cause a difference.
_EXACT = "accurate_rnd+full_chroma_int+full_chroma_inp+bicubic"


@dataclass(frozen=True)
class Video:
    """A file's video as `ffmpeg` shows it: one entry per frame, in order of presentation.

    `times` and `durations` are in seconds, uint8 `pictures` [n, H, W, 3] RGB turned as a player turns them, and
    `aspect` is the width of a pixel by its height.
    """

    times: list[Fraction]
    durations: list[Fraction]
    pictures: NDArray[np.uint8]
    aspect: Fraction


def decode(path: Path) -> Video:
    """Decode a file's video in its own colours; transparent parts lie on black."""
    options = ["-threads", 1, "-copyts", "-i", f"file:{path}", "-map", "0:v:0", "-fps_mode", "passthrough"]
    layout, prefix = _probe_first_frame(path, options)
    alpha = layout.startswith(("yuva", "gbrap", "ya", "pal8")) or layout in ("argb", "rgba", "bgra", "abgr")
    output, channels = ("rgba", 4) if alpha else ("rgb24", 3)
    filters = f"{prefix}scale=flags={_EXACT},format={output},showinfo=checksum=0"
    process = run(*options, "-vf", filters, "-f", "rawvideo", "-")
    log = process.stderr.decode(errors="replace")
    base = _TIME_BASE.search(log)
    frames = _FRAME.findall(log)
    assert base and frames, f"ffmpeg shows nothing of {path.name}:\n{log[-2000:]}"
    unit = Fraction(int(base[1]), int(base[2]))
    sizes = {frame[5:] for frame in frames}
    assert len(sizes) == 1, f"{path.name} changes its size: {sizes}"
    width, height = int(frames[0][5]), int(frames[0][6])
    pictures = np.frombuffer(process.stdout, np.uint8).reshape(-1, height, width, channels)
    assert len(pictures) == len(frames), f"{len(pictures)} pictures, {len(frames)} lines of showinfo"
    if alpha:
        opaque = pictures[..., 3:].astype(np.uint16)
        pictures = ((pictures[..., :3] * opaque + 127) // 255).astype(np.uint8)
    return Video(
        times=[int(frame[0]) * unit for frame in frames],
        durations=[int(frame[1]) * unit for frame in frames],
        pictures=pictures,
        aspect=Fraction(int(frames[0][3]), int(frames[0][4]) or 1) or Fraction(1),
    )


def _probe_first_frame(path: Path, options: Sequence[object]) -> tuple[str, str]:
    """The pixel format of a file's first decoded frame, and a filter that states what swscale does not know."""
    # The stored size decides whether it is HD
    log = run("-noautorotate", *options, "-frames:v", 1, "-vf", "showinfo=checksum=0", "-f", "null", "-").stderr.decode(
        errors="replace"
    )
    frame = _FRAME.search(log)
    colour = re.search(r"color_range:(\S+) color_space:(\S+)", log)
    assert frame and colour, f"ffmpeg shows nothing of {path.name}:\n{log[-2000:]}"
    layout, width, height = frame[3], int(frame[6]), int(frame[7])
    if layout.startswith("gray") and colour[1] == "tv":
        # swscale takes gray as full range, whatever its tag says
        peak = 2 ** int(re.sub(r"\D", "", layout) or 8)
        black, span = 16 * peak // 256, 219 * peak // 256
        return layout, f"lut=c0='clip((val-{black})*{peak - 1}/{span}\\,0\\,{peak - 1})',setparams=range=pc,"
    if layout.startswith("yuv") and colour[2] == "unknown" and (width >= 1280 or height > 576):
        # players take HD without a matrix tag as BT.709, swscale as BT.601
        return layout, "setparams=colorspace=bt709,"
    return layout, ""
