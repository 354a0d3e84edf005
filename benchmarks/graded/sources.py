"""Selects the clean clips that faults are made from, and loads the pieces of them that are measured."""

from __future__ import annotations

import hashlib
import json
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np

from annotators.base import Frames
from pipeline.errors import UsageError
from pipeline.video.display import Display, thumbnail, to_rgb
from pipeline.video.frames import collect_times, cut_windows, read_frames
from pipeline.video.grid import Grid, shots_of
from pipeline.video.probe import Probe, probe_video
from pipeline.video.shots import Adaptive

FRAMES = 33
"""Frames of a piece: the minimum of a clip."""

GRID = Grid(frames=FRAMES, min_frames=FRAMES)
HALVES = ("choosing", "reporting")
"""Thresholds are chosen on the sources of the first half and reported on those of the second."""

# Tags of clips that are not clean, or that no camera filmed.
_UNCLEAN = frozenset({"synthetic", "text", "letterbox", "degraded", "near_duplicate"})
# Sources with fewer frames a second make no clip.
_MIN_FPS = 8.0
# The size limit of trusted files, and the most pixels of a piece.
_MAX_PIXELS, _PIECE_PIXELS = 8192 * 4320, 640 * 360
# Later frames of a longer source are ignored.
_MAX_FRAMES = 150
# The size at which faults in time are made, at every frame of the source: four times TransNet's picture.
_SMALL_SIZE = (192, 108)
# Frames of a piece at the source's own rate: as many as TransNet predicts at once.
SHOT_FRAMES = 50


@dataclass(frozen=True, slots=True)
class Source:
    """A clean clip: its file, its label's tags, and the half that it belongs to."""

    path: Path
    tags: frozenset[str]
    half: str

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.path.name


@dataclass(slots=True)
class Material:
    """The frames of a source that are measured.

    `pieces`: windows of `FRAMES` grid points at the size of the source, the middle one first, uint8 [T, H, W, 3].
    `thumbs`: the source from its start, at the shot detectors' size. `small`: up to `SHOT_FRAMES` frames of one shot at
    `fps`, the rate of the source, uint8 [n, 108, 192, 3].
    """

    pieces: list[Frames]
    thumbs: Frames
    small: Frames
    fps: float


def clean_sources(folder: Path) -> list[Source]:
    """The clean clips of a labelled folder (see `benchmarks.ingest.accuracy`), in order of their names.

    Raises `UsageError` for a folder without labels, or with fewer than one clean clip for each half.
    """
    try:
        labels = json.loads((folder / "labels.json").read_text())
        sources = [
            Source(folder / label["file"], frozenset(label.get("tags", ())), _choose_half(label["file"]))
            for label in sorted(labels, key=lambda label: str(label["file"]))
            if label.get("kind") != "derived"
            and not _UNCLEAN & set(label.get("tags", ()))
            and float(label.get("fps") or _MIN_FPS) >= _MIN_FPS
            and (folder / label["file"]).is_file()
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{folder} needs a labels.json, a list of objects with a file each: {error}") from error
    if {source.half for source in sources} != set(HALVES):
        raise UsageError(
            f"{folder} has too few clean clips: the graded table needs some to choose on and some to report"
        )
    return sources


def _choose_half(name: str) -> str:
    # By the name alone, so that a clip stays in its half when other clips are added to the folder.
    return HALVES[hashlib.sha256(name.encode()).digest()[0] % 2]


def load_material(source: Source) -> Material | None:
    """The material of a source, or None if no shot is long enough for a clip."""
    probe = probe_video(source.path, _MAX_PIXELS)
    with closing(read_frames(source.path, probe)) as frames:
        decoded = list(islice(frames, _MAX_FRAMES))
    frame_times = collect_times(decoded)
    times = frame_times.times
    thumbs = np.stack([thumbnail(picture.frame, picture.display.crop) for picture in decoded])
    # Pieces must lie within a shot; the shots come from a detector that is not under test.
    ranges = Adaptive()([thumbs])
    windows = GRID.windows(source.name, shots_of(ranges, *frame_times), times)
    if not windows:
        return None
    # The middle window, and the first one if it is another.
    chosen = list({window.clip_id: window for window in (windows[len(windows) // 2], windows[0])}.values())
    cut_pieces = cut_windows(iter(decoded), probe, chosen, GRID.fps, _piece_size(probe))
    pieces = {window.clip_id: frames for window, frames in cut_pieces}
    first, last = max(ranges, key=lambda shot: shot[1] - shot[0])
    start = max(first, (first + last + 1 - SHOT_FRAMES) // 2)
    small = [
        thumbnail(picture.frame, picture.display.crop, _SMALL_SIZE)
        for picture in decoded[start : min(last + 1, start + SHOT_FRAMES)]
    ]
    fps = (len(times) - 1) / (times[-1] - times[0])
    return Material([pieces[window.clip_id] for window in chosen], thumbs, np.stack(small), float(fps))


def _piece_size(probe: Probe) -> tuple[int, int]:
    """Even sides, as codecs need, and at most the pixels of a piece."""
    width, height = probe.display.width, probe.display.height
    scale = min(1.0, (_PIECE_PIXELS / (width * height)) ** 0.5)
    return round(width * scale) // 2 * 2, round(height * scale) // 2 * 2


def put_on_grid(frames: Frames) -> Frames:
    """Scale pictures of a source's size to a clip's size, as ingest does: uint8 [T, H, W, 3]."""
    height, width = frames.shape[1:3]
    size = GRID.size(width, height)
    assert size is not None
    display = Display(width, height)
    return np.stack([to_rgb(av.VideoFrame.from_ndarray(frame, "rgb24"), display, size) for frame in frames])


def thumbnails(small: Frames) -> Frames:
    """Pictures of a `Material` in the shot detector's size: uint8 [n, 27, 48, 3]."""
    return np.stack([cv2.resize(frame, (48, 27), interpolation=cv2.INTER_AREA) for frame in small])
