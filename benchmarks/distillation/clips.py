"""Crops of real clips, in the same form as synthetic scenes: their control track is luma, as VACE's task "gray" has it.

What is held out comes from other files than what is trained on; of files that are copies of each other that is not
enough, so a folder of originals is wanted.
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from benchmarks.distillation import scenes
from benchmarks.distillation.scenes import FRAMES, SIDE, Scene
from pipeline.errors import UsageError

_SUFFIXES = {".mp4", ".mkv", ".avi", ".webm", ".mov"}
# The shorter side that a video is scaled to before crops are cut.
_SCALE = 2 * SIDE
# Of so many files one is held out.
_HELD = 4


def crops(folder: Path, train: int, test: int) -> tuple[list[Scene], list[Scene], dict[str, int]]:
    """`train` and `test` crops of the videos in a folder, and how many files they are from.

    Raises UsageError where a folder has too few videos that can be read.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES)
    held = [file for number, file in enumerate(files) if number % _HELD == 0]
    others = [file for file in files if file not in held]
    made = [_of(part, count) for part, count in ((others, train), (held, test))]
    return made[0][0], made[1][0], {"train_files": made[0][1], "test_files": made[1][1]}


def _of(files: list[Path], count: int) -> tuple[list[Scene], int]:
    """So many crops, as many of each file as of the others, and the number of files."""
    windows = [found for file in files if (found := _windows(file))]
    if not windows:
        raise UsageError("no video with 17 frames among those files: give --clips a folder with at least 8 of them")
    draw = np.random.default_rng(21)
    made = []
    for number in range(count):
        own = windows[number % len(windows)]
        shown = own[draw.integers(len(own))]
        top, left = (draw.integers(side - SIDE + 1) for side in shown.shape[1:3])
        clip = np.ascontiguousarray(shown[:, top : top + SIDE, left : left + SIDE])
        hidden = np.zeros(clip.shape[:3], dtype=bool)
        y, x = draw.integers(SIDE // 2 + 1, size=2)
        hidden[:, y : y + SIDE // 2, x : x + SIDE // 2] = True
        track = scenes.luma(clip).round().astype(np.uint8)
        made.append(Scene(clip, "", track, track > scenes.NEAR, hidden))
    return made, len(windows)


def _windows(file: Path) -> list[NDArray[np.uint8]]:
    """Up to 4 windows of frames, one after the other, of a small copy; none of what cannot be read."""
    frames: list[NDArray[np.uint8]] = []
    try:
        with av.open(str(file)) as video:
            for frame in video.decode(video=0):
                scale = _SCALE / min(frame.width, frame.height)
                small = frame.reformat(
                    max(_SCALE, round(frame.width * scale)), max(_SCALE, round(frame.height * scale)), "rgb24"
                )
                frames.append(small.to_ndarray())
                if len(frames) == 4 * FRAMES:
                    break
    except (av.FFmpegError, IndexError):
        return []
    return [np.stack(frames[at : at + FRAMES]) for at in range(0, len(frames) - FRAMES + 1, FRAMES)]
