"""Gives each decoded frame its time, from containers with right, wrong or missing time stamps."""

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
# may be set, so do those that jump ahead by more than the second number, which the ffmpeg program uses too.
_JUMP_BACK_S, _JUMP_AHEAD_S = 1.0, 10.0
# Steps from frame to frame, whose median is used where a frame has no time.
_STEPS = 9
# With more frames out of order than this, and than this share of all, the stream's times of display are unusable.
_FEW_FAULTS, _FAULT_SHARE = 3, 0.1


@dataclass(slots=True)
class Tally:
    """Decoded frames, and how many of them were not used because they repeat a time or go back."""

    decoded: int = 0
    unused: int = 0


class TimedFrame(NamedTuple):
    """A frame shown from `time_s` for `duration_s` seconds; `joined` is false for the first one after a jump in the
    file's time stamps, and after frames that could not be decoded."""

    time_s: float
    duration_s: float
    frame: av.VideoFrame
    joined: bool


class Clock(Enum):
    """What a frame's time is taken from, in the order in which they are tried."""

    DISPLAY = "times of display"
    DECODING = "times of decoding"
    COUNT = "the header's frame rate"


class Timeline:
    """Gives strictly rising times to the frames of a stream, which a decoder returns in order of display.

    AVI, MXF and raw streams store only the order of decoding, and the times of display that FFmpeg derives for them are
    wrong if there are B-frames. The time of decoding of the packet that made a decoder return a frame rises with every
    frame, and equals the frame's time of display in a stream that has both, so it is used for frames that have no
    other, and for all once too many are out of order. (The ffmpeg program guesses by the same rule.) If that does not
    rise either, frames are counted. Where time stamps start over, what follows is appended to what came before; a
    frame without one is shown after the one before it.
    """

    def __init__(
        self, stream: VideoStream, usual_s: float, *, clock: Clock = Clock.DISPLAY, clock_may_jump: bool = False
    ) -> None:
        """`usual_s`: the duration in seconds of a frame that does not state one."""
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

    def place(self, frame: av.VideoFrame) -> TimedFrame | None:
        """The next frame of the decoder with its time; None if it has no time after that of the frame before."""
        self.tally.decoded += 1
        self._frames += 1
        has_begun = math.isfinite(self._last_s)
        following_s = self._last_s + median(self._steps) if has_begun else 0.0
        stamp = self._stamp(frame)
        time_s = following_s if stamp is None else float(stamp * self._unit) + self._shift_s
        jumps_ahead = self._clock_may_jump and has_begun and time_s > self.end_s + _JUMP_AHEAD_S
        if jumps_ahead or time_s < self._last_s - _JUMP_BACK_S:
            self._shift_s += following_s - time_s
            time_s, self._joined, self.jumped = following_s, False, True
        if time_s <= self._last_s:
            self.tally.unused += 1
            self._distrust()
            return None
        duration_s = float(frame.duration * self._unit) if frame.duration else self._usual_s
        if has_begun:
            self._steps.append(time_s - self._last_s)
        self._last_s, self.end_s = time_s, time_s + duration_s
        joined, self._joined = self._joined, True
        return TimedFrame(time_s, duration_s, frame, joined)

    def interrupt(self) -> None:
        """Note that frames are lost before the next one."""
        self._joined = False

    def _stamp(self, frame: av.VideoFrame) -> int | None:
        if self.clock is Clock.COUNT:
            return None
        stamp: int | None = frame.pts if frame.pts is not None and self.clock is Clock.DISPLAY else frame.dts
        return stamp

    def _distrust(self) -> None:
        """Note that a frame is out of order; after too many, switch to the next clock."""
        self._faults += 1
        if self._faults <= max(_FEW_FAULTS, self._frames * _FAULT_SHARE):
            return
        if self.clock is not Clock.COUNT:
            self.clock = Clock.DECODING if self.clock is Clock.DISPLAY else Clock.COUNT
        self._frames = self._faults = 0
        if self.clock is Clock.COUNT:
            self._steps.clear()
            self._steps.append(self._usual_s)
