"""Writes small videos: moving textures with hard cuts, and files that are broken in one known way."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np

FPS = 16
SIZE = (96, 128)  # height, width
# The grid of the tests takes 17 frames at 8 per second, which is two seconds; a shot lasts a little longer.
SHOT_FRAMES = 36
RECIPE: dict[str, Any] = {
    "shots": "adaptive",
    "grid": {"fps": 8, "frames": 17, "min_frames": 9, "area": 36864, "multiple": 16},
    "stages": [["scribble"]],
    "rules": {"too_dark": "luma < 5"},
    "tasks": {"text": "true", "scribble": "scribble_density > 0.002"},
    "commit": {"shard_mb": 1, "every_s": 2},
}


def texture(seed: int, tint: tuple[int, int, int] | None = None, grain: int = 8) -> Any:
    """A picture of random squares, `grain` pixels wide, around one colour: uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    colour = np.array(rng.integers(40, 216, 3) if tint is None else tint)
    squares = rng.integers(-40, 40, (SIZE[0] // grain, SIZE[1] // grain, 1))
    picture = np.clip(colour + squares, 0, 255).astype(np.uint8)
    return picture.repeat(grain, axis=0).repeat(grain, axis=1)


def frames(seed: int, shots: int, count: int, tint: tuple[int, int, int] | None = None, grain: int = 8) -> Any:
    """uint8 [shots * count, height, width, 3]: each shot is a different texture that moves to the right."""
    tints: list[tuple[int, int, int] | None] = [tint] * shots
    if tint is None and shots > 1:
        # Very different, so that every cut is detected.
        tints = [((60, 90, 160), (200, 190, 80))[index % 2] for index in range(shots)]
    pictures = [texture(1000 * seed + index, tints[index], grain) for index in range(shots)]
    return np.stack([np.roll(picture, 2 * step, axis=1) for picture in pictures for step in range(count)])


def write(
    path: Path,
    seed: int,
    *,
    shots: int = 1,
    count: int = SHOT_FRAMES,
    tint: tuple[int, int, int] | None = None,
    grain: int = 8,
    group: int = 250,
) -> Path:
    """Write an H.264 MP4 with its index at the front, and a key frame every `group` frames."""
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        options = {"crf": "20", "preset": "ultrafast", "threads": "1", "g": str(group)}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        for picture in frames(seed, shots, count, tint, grain):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    return path


def write_audio(path: Path) -> Path:
    """Write an MP4 that holds a second of sound and nothing else."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        for start in range(0, 8000, 1000):
            wave = np.sin(np.arange(start, start + 1000) / 20).astype(np.float32)[None]
            frame = av.AudioFrame.from_ndarray(wave, "fltp", "mono")
            frame.rate, frame.pts = 8000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_vast(path: Path) -> Path:
    """Write a GIF of a few bytes with 16384 x 8192 in its header."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="gif") as container:
        stream = container.add_stream("gif", rate=10)
        stream.height, stream.width = SIZE
        stream.pix_fmt = "rgb8"
        for picture in frames(0, 1, 3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="rgb8")))
        container.mux(stream.encode())
    data = bytearray(buffer.getvalue())
    data[6:10] = (16384).to_bytes(2, "little") + (8192).to_bytes(2, "little")
    path.write_bytes(data)
    return path


def write_truncated(path: Path, seed: int) -> Path:
    """Write a video without its last third; its index at the front lists all of it."""
    content = write(path, seed, shots=2).read_bytes()
    path.write_bytes(content[: 2 * len(content) // 3])
    return path
