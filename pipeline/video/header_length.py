"""The length of a stream by its file's header, and whether it ends before that."""

from __future__ import annotations

import re
from fractions import Fraction

import av
from av.container import InputContainer
from av.video.stream import VideoStream

# AVFMT_NOTIMESTAMPS: raw streams, whose duration FFmpeg only guesses from the bit rate.
NO_TIMESTAMPS = 0x0080
# AV_TIME_BASE: the unit of a container's times, and of those of a stream without a unit.
_MICROSECONDS = Fraction(1, av.time_base)
# A source is cut short if it ends this much before its header says: headers are often a little off.
_SHORT_S, _SHORT_SHARE = 1.0, 0.01
# Formats, by the beginning of FFmpeg's name, whose length counts from zero and not from the first picture; Matroska's
# writers do either.
_LENGTH_FROM_ZERO = ("matroska", "nut", "asf")


def read_duration(container: InputContainer, stream: VideoStream, first: av.VideoFrame | None = None) -> float | None:
    """Seconds from the first picture to the last one's end, by the file's header; None if it does not say."""
    start_s = _start_time(stream) if first is None or first.pts is None else float(first.pts * _time_unit(stream))
    if stream.duration:
        length_s = float(stream.duration * _time_unit(stream))
    elif (end_s := _read_tagged_end(stream)) is not None:
        length_s = end_s
    elif container.duration:
        length_s = float(container.duration * _MICROSECONDS)
    else:
        return None
    from_zero = container.format.name.startswith(_LENGTH_FROM_ZERO) and 0 < start_s < length_s
    return length_s - start_s if from_zero else length_s


def find_missed_end(
    container: InputContainer, stream: VideoStream, end_s: float, reach_s: float
) -> tuple[float, float] | None:
    """When a stream ends and when it should by its header, in seconds, if that is much later; otherwise None.

    `end_s`: the end of the last frame; `reach_s`: that of the last packet of any stream. Raises ValueError if the
    header does not say.
    """
    if container.format.flags & NO_TIMESTAMPS:
        raise ValueError("a raw stream has no length")
    start_s = _start_time(stream)
    ends: list[tuple[float, float]] = []
    if stream.duration:
        # AVI counts frames, including dropped ones; without its index FFmpeg reports the length of the data present.
        counted_s = float(stream.frames / stream.average_rate) if stream.frames and stream.average_rate else 0.0
        ends.append((end_s, max(counted_s, float(stream.duration * _time_unit(stream)))))
    else:
        # The length of this stream, or of all; if one of them is reached the file is complete: tools leave stale ones.
        start_s = float((container.start_time or 0) * _MICROSECONDS)
        tagged_s = _read_tagged_end(stream)
        if tagged_s is not None:
            ends.append((end_s, tagged_s))
        if container.duration:
            ends.append((max(end_s, reach_s), float(container.duration * _MICROSECONDS)))
    if not ends:
        raise ValueError("the header does not say")
    # A length counts from zero or from the start, depending on the writer.
    declared = [(at_s, min(until_s, start_s + until_s)) for at_s, until_s in ends]
    ends_early = all(at_s < until_s - max(_SHORT_S, until_s * _SHORT_SHARE) for at_s, until_s in declared)
    return declared[0] if ends_early else None


def _read_tagged_end(stream: VideoStream) -> float | None:
    """When a Matroska stream ends, in seconds, by the tag that most writers add."""
    clock = re.fullmatch(r"(\d{1,9}):(\d\d):(\d\d(?:\.\d{1,9})?)\0*", stream.metadata.get("DURATION", ""))
    return int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3]) if clock else None


def _time_unit(stream: VideoStream) -> Fraction:
    return stream.time_base or _MICROSECONDS


def _start_time(stream: VideoStream) -> float:
    return float((stream.start_time or 0) * _time_unit(stream))
