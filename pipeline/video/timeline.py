"""When each decoded frame is shown, for containers that say it right, wrong or not at all."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from statistics import median
from typing import NamedTuple

import av
from av.video.stream import VideoStream

# Time stamps that jump back by more than this start over, as where two recordings were joined; in formats whose clock
# may be set, so do those that jump ahead by more than the second number, which FFmpeg's own program has too.
_JUMP_BACK_S, _JUMP_AHEAD_S = 1.0, 10.0
# Steps from frame to frame, of which the typical one goes on where a frame has no time.
_STEPS = 9
# More frames out of order than this, and than this share of all: the stream's times of display are no good.
_FEW_FAULTS, _FAULT_SHARE = 3, 0.1


@dataclass(slots=True)
class Tally:
    """Frames that the decoder gave, and how many of them were not used: they repeat a time or go back in it."""

    decoded: int = 0
    unused: int = 0


class Timed(NamedTuple):
    """A frame shown from `time_s` for `duration_s` seconds; `joined` is false for the first one after a jump in the
    file's time stamps, and after frames that could not be decoded."""

    time_s: float
    duration_s: float
    frame: av.VideoFrame
    joined: bool


class Clock(Enum):
    """What a frame's time is taken from, in the order in which they are given up."""

    DISPLAY = "times of display"
    DECODING = "times of decoding"
    COUNT = "the header's frame rate"


class Timeline:
    """Gives the frames of a stream, which a decoder puts out in order of display, strictly rising times.

    AVI, MXF and raw streams know the order of decoding alone, and the times of display that FFmpeg works out for them
    are wrong where there are B-frames. The time of decoding of the packet that made a decoder let go of a frame rises
    with every frame, and is the frame's time of display in a stream that says both, so it counts for frames that have
    no other, and for all once too many are out of order. (FFmpeg's own program guesses by the same rule.) Where that
    does not rise either, frames are counted. Where time stamps start over, what follows is put behind what was there; a
    frame without any is shown after the one before it.
    """

    def __init__(
        self, stream: VideoStream, usual_s: float, *, clock: Clock = Clock.DISPLAY, clock_may_jump: bool = False
    ) -> None:
        """`usual_s`: how long a frame lasts, in seconds, that does not say so."""
        self._unit = stream.time_base or Fraction(1, av.time_base)
        self._usual_s, self._clock_may_jump = usual_s, clock_may_jump
        self._shift_s = 0.0
        self._last_s = -math.inf
        # The latest steps from frame to frame.
        self._steps: deque[float] = deque([usual_s], maxlen=_STEPS)
        # Frames since the clock was chosen, and those of them that are out of order.
        self._frames = self._faults = 0
        self._joined = True
        self.clock = clock
        self.tally = Tally()
        self.end_s = 0.0
        self.jumped = False

    def place(self, frame: av.VideoFrame) -> Timed | None:
        """The next frame of the decoder with its time; None where it has none that lies after the one before."""
        self.tally.decoded += 1
        self._frames += 1
        begun = math.isfinite(self._last_s)
        following_s = self._last_s + median(self._steps) if begun else 0.0
        stamp = self._stamp(frame)
        time_s = following_s if stamp is None else float(stamp * self._unit) + self._shift_s
        ahead = self._clock_may_jump and begun and time_s > self.end_s + _JUMP_AHEAD_S
        if ahead or time_s < self._last_s - _JUMP_BACK_S:
            self._shift_s += following_s - time_s
            time_s, self._joined, self.jumped = following_s, False, True
        if time_s <= self._last_s:
            self.tally.unused += 1
            self._distrust()
            return None
        duration_s = float(frame.duration * self._unit) if frame.duration else self._usual_s
        if begun:
            self._steps.append(time_s - self._last_s)
        self._last_s, self.end_s = time_s, time_s + duration_s
        joined, self._joined = self._joined, True
        return Timed(time_s, duration_s, frame, joined)

    def interrupt(self) -> None:
        """Frames are lost before the next one."""
        self._joined = False

    def _stamp(self, frame: av.VideoFrame) -> int | None:
        if self.clock is Clock.COUNT:
            return None
        stamp: int | None = frame.pts if frame.pts is not None and self.clock is Clock.DISPLAY else frame.dts
        return stamp

    def _distrust(self) -> None:
        """Note that a frame is out of order; where too many are, the next clock counts."""
        self._faults += 1
        if self._faults <= max(_FEW_FAULTS, self._frames * _FAULT_SHARE):
            return
        if self.clock is not Clock.COUNT:
            self.clock = Clock.DECODING if self.clock is Clock.DISPLAY else Clock.COUNT
        self._frames = self._faults = 0
        if self.clock is Clock.COUNT:
            self._steps.clear()
            self._steps.append(self._usual_s)
