"""The frame grid of clips, as pure functions, so that a clip's id determines which source frames it shows."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A grid point may show a frame that starts up to 1 ms after it: Matroska rounds timestamps to 1 ms.
_EARLY_S = 1e-3
# A shot may end up to 2 ms early and still have the grid point at its end: Matroska truncates the last frame's
# duration to whole milliseconds, and its timestamp may be rounded down too.
_SHORT_S = 2e-3
# A frame that lasts longer than this, in seconds and in typical steps of its source, ends a shot: nothing was
# recorded, or it is a still, and a clip of either teaches nothing.
_GAP_S, _GAP_STEPS = 1.0, 4.0
# A source has a constant rate if this share of its steps are whole multiples of the usual one.
_CONSTANT_SHARE = 0.9
# Window times are whole microseconds (FFmpeg's AV_TIME_BASE), so that a catalog keeps them exactly.
_MICRO = 1_000_000
# Larger values are typing errors: no camera is faster, and a clip of so many frames fills a machine's memory.
_FASTEST, _LONGEST = 1000.0, 10_001
# The longest side that x264 encodes.
_LONGEST_SIDE = 16_384


@dataclass(frozen=True)
class Shot:
    """Frames `first` to `last` of a source (inclusive), shown from `start_s` until `end_s` seconds."""

    first: int
    last: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Window:
    """One clip of a source: `frames` grid points from `start_s` on, showing no source frame after `end_s`.

    `start_s` is the time of the first grid point, `end_s` the timestamp of the last source frame that may be
    shown; both are in seconds, in whole microseconds. These and the grid's fps determine every frame shown.
    """

    clip_id: str
    start_s: float
    end_s: float
    frames: int

    def limits(self, fps: float) -> NDArray[np.float64]:
        """The latest timestamp (seconds) that each grid point may show, float64[frames], never decreasing.

        A grid point shows the latest source frame whose timestamp is not above its limit.
        """
        points = self.start_s + np.arange(self.frames) / fps
        return np.minimum(points + _EARLY_S, self.end_s + 1 / _MICRO)


@dataclass(frozen=True)
class Grid:
    """The frame rate, length and size of clips.

    The defaults are those of Wan 2.1 and VACE at 480p: 81 frames at 16 fps, area 480x832, sides multiples
    of 16. Raises ValueError for values that do not make a grid.
    """

    fps: float = 16.0
    """Frames per second."""
    frames: int = 81
    """Frames of a clip: 4n+1, as video VAEs want."""
    min_frames: int = 33
    """Frames of the shortest clip: 4n+1."""
    area: int = 480 * 832
    """The most pixels of a frame."""
    multiple: int = 16
    """What both sides of a frame are multiples of."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"fps must be above 0, not {self.fps}.")
        for name, count in (("frames", self.frames), ("min_frames", self.min_frames)):
            if count < 1 or count % 4 != 1:
                raise ValueError(f"{name} must be 4n+1 (5, 9, 13, ..., 81), not {count}.")
        if self.fps > _FASTEST or self.frames > _LONGEST:
            raise ValueError(f"fps must be at most {_FASTEST:g} and frames at most {_LONGEST}.")
        if self.min_frames > self.frames:
            raise ValueError(f"min_frames ({self.min_frames}) must not be above frames ({self.frames}).")
        if self.multiple < 2 or self.multiple % 2:
            raise ValueError(f"multiple must be even and at least 2, not {self.multiple}.")
        if self.area < self.multiple**2:
            raise ValueError(f"area must be at least multiple squared, {self.multiple**2}, not {self.area}.")

    def key(self, crop: bool = False) -> str:
        """The canonical text of this grid, a part of every clip id; `crop`: bars are cut off."""
        text = f"fps={float(self.fps)!r} frames={self.frames} min_frames={self.min_frames}"
        return f"{text} area={self.area} multiple={self.multiple}{' crop' if crop else ''}"

    def size(self, width: int, height: int) -> tuple[int, int] | None:
        """The (width, height) of clips from a `width` x `height` picture, or None if none fits.

        Never larger than the picture, area at most `area`, sides multiples of `multiple`. The picture is to
        be scaled until it covers this size and cropped at the centre, which keeps its aspect. None means that
        a side would be under `multiple`, or over what can be encoded: the picture is too small, or too long and thin,
        to make a clip.
        """
        if width < 1 or height < 1:
            return None
        # width * sqrt(area / (width * height)) in integers: a float may fall just short of a multiple
        fitted_width = min(width, math.isqrt(self.area * width // height)) // self.multiple * self.multiple
        fitted_height = min(height, math.isqrt(self.area * height // width)) // self.multiple * self.multiple
        if not (fitted_width and fitted_height) or max(fitted_width, fitted_height) > _LONGEST_SIDE:
            return None
        return fitted_width, fitted_height

    def windows(
        self, source_hash: str, shots: Iterable[Shot], times: NDArray[np.float64], crop: bool = False
    ) -> list[Window]:
        """Cut shots into clips.

        Each shot is a video of its own, from its first frame to the end of display of its last one. Its grid
        points are start + k/fps up to and including that end, so 2 s at 16 fps have 33. They are cut greedily
        into windows of `frames` points; a remainder is floored to 4n+1 and kept from `min_frames` up.

        `times` are the source's frame timestamps in seconds, float64[n], rising; `crop` goes into the ids.
        """
        cuts = []
        for shot in shots:
            points = math.floor((shot.end_s - shot.start_s + _SHORT_S) * self.fps) + 1
            for begin in range(0, points, self.frames):
                count = min(self.frames, (points - begin - 1) // 4 * 4 + 1)
                if count < self.min_frames:
                    break
                start_s = _round_to_micro(shot.start_s + begin / self.fps)
                in_shot = Window("", start_s, _round_to_micro(float(times[shot.last])), count)
                last = int(np.searchsorted(times, in_shot.limits(self.fps)[-1], side="right")) - 1
                end_s = _round_to_micro(float(times[max(last, shot.first)]))
                identifier = compute_clip_id(source_hash, start_s, end_s, self, crop)
                cuts.append(Window(identifier, start_s, end_s, count))
        return cuts


def shots_of(
    ranges: Sequence[tuple[int, int]],
    times: NDArray[np.float64],
    end_s: float,
    joined: NDArray[np.bool_] | None = None,
) -> list[Shot]:
    """A shot detector's inclusive (first, last) frame ranges as shots with times, split at gaps in the source.

    `times` are the source's frame timestamps in seconds, float64[n], rising; `end_s` is the end of display of its last
    frame. A frame is displayed until the next one starts, or for a typical step if that starts much later. `joined`,
    bool[n], is false for a frame that does not continue the one before it: a shot begins there too.
    """
    ends = np.append(times[1:], end_s)
    gaps = _find_gaps(times, end_s)
    ends = np.where(gaps, times + typical_step(times, end_s), ends)
    breaks = gaps[:-1] if joined is None else gaps[:-1] | ~joined[1:]
    shots = []
    for first, last in ranges:
        lasts = [first + index for index in np.flatnonzero(breaks[first:last]).tolist()]
        firsts = [first, *(index + 1 for index in lasts)]
        shots += [
            Shot(begin, end, float(times[begin]), float(ends[end]))
            for begin, end in zip(firsts, [*lasts, last], strict=True)
        ]
    return shots


def typical_step(times: NDArray[np.float64], end_s: float) -> float:
    """How long a frame of a source is shown, in seconds: the mean of the steps that are near their median.

    So held and lost frames do not count, and time stamps rounded to 1 ms do no harm. `times` and `end_s` as
    in `shots_of`; the length of the last frame counts only if it is the only one, since headers guess it.
    """
    steps = np.diff(times) if len(times) > 1 else np.array([end_s - times[0]])
    # One of the steps, not the mean of two: that may lie far from both.
    usual = float(np.sort(steps)[(len(steps) - 1) // 2])
    return float(steps[np.abs(steps - usual) <= usual / 2].mean())


def count_missing_frames(times: NDArray[np.float64]) -> int | None:
    """How many more frames would fit between those of a source of constant rate; None if the rate varies.

    The file lost them, or nothing was recorded. `times` as in `shots_of`.
    """
    steps = np.diff(times)
    if not len(steps):
        return None
    usual = float(np.median(steps))
    counts = np.rint(steps / usual)
    # Matroska rounds to 1 ms, so a step may be off by as much.
    if np.mean(np.abs(steps - counts * usual) <= _SHORT_S) < _CONSTANT_SHARE:
        return None
    return int(np.maximum(counts - 1, 0).sum())


def _find_gaps(times: NDArray[np.float64], end_s: float) -> NDArray[np.bool_]:
    """Whether a frame lasts much longer than most, bool[n]."""
    steps = np.diff(times, append=end_s)
    return steps > max(_GAP_S, _GAP_STEPS * float(np.median(steps)))


def compute_clip_id(source_hash: str, start_s: float, end_s: float, grid: Grid, crop: bool = False) -> str:
    """32 hex digits from the source's content hash, the window's times in whole microseconds, and the grid.

    Never from a path, so that a file that is moved keeps its clips.
    """
    text = f"{source_hash}\n{round(start_s * _MICRO)}\n{round(end_s * _MICRO)}\n{grid.key(crop)}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _round_to_micro(seconds: float) -> float:
    """Seconds rounded to whole microseconds."""
    return round(seconds * _MICRO) / _MICRO
