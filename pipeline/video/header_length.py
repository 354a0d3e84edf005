"""How long a stream is by its file's header, and whether it ends before that."""

from __future__ import annotations

import re
from fractions import Fraction

import av
from av.container import InputContainer
from av.video.stream import VideoStream

# AVFMT_NOTIMESTAMPS: raw streams, whose duration FFmpeg only guesses from the bit rate.
NO_TIMESTAMPS = 0x0080
# AV_TIME_BASE: the unit of a container's times, and of a stream's that names none.
_MICROSECONDS = Fraction(1, av.time_base)
# A source is cut short when it ends this much before its header says: headers are often a little off.
_SHORT_S, _SHORT_SHARE = 1.0, 0.01
# Formats, by how FFmpeg's names of them begin, whose length counts from zero and not from the first picture; Matroska's
# writers do either.
_LENGTH_FROM_ZERO = ("matroska", "nut", "asf")


def duration(container: InputContainer, stream: VideoStream, first: av.VideoFrame | None = None) -> float | None:
    """Seconds from the first picture to the last one's end, by the file's header; None where it does not say."""
    start_s = _start(stream) if first is None or first.pts is None else float(first.pts * _unit(stream))
    if stream.duration:
        length_s = float(stream.duration * _unit(stream))
    elif (end_s := _tagged_end(stream)) is not None:
        length_s = end_s
    elif container.duration:
        length_s = float(container.duration * _MICROSECONDS)
    else:
        return None
    from_zero = container.format.name.startswith(_LENGTH_FROM_ZERO) and 0 < start_s < length_s
    return length_s - start_s if from_zero else length_s


def missed_end(
    container: InputContainer, stream: VideoStream, end_s: float, reach_s: float
) -> tuple[float, float] | None:
    """When a stream ends and when it should by its header, in seconds, where that is well after; else None.

    `end_s`: the end of the last frame; `reach_s`: that of the last packet of any stream. Raises ValueError where the
    header does not say.
    """
    if container.format.flags & NO_TIMESTAMPS:
        raise ValueError("a raw stream has no length")
    start_s = _start(stream)
    ends: list[tuple[float, float]] = []
    if stream.duration:
        # AVI counts frames, those too that it dropped; without its index FFmpeg tells the length of what is there.
        counted_s = float(stream.frames / stream.average_rate) if stream.frames and stream.average_rate else 0.0
        ends.append((end_s, max(counted_s, float(stream.duration * _unit(stream)))))
    else:
        # The length of this stream, or of all; where one of them is kept the file is whole: tools leave stale ones.
        start_s = float((container.start_time or 0) * _MICROSECONDS)
        tagged_s = _tagged_end(stream)
        if tagged_s is not None:
            ends.append((end_s, tagged_s))
        if container.duration:
            ends.append((max(end_s, reach_s), float(container.duration * _MICROSECONDS)))
    if not ends:
        raise ValueError("the header does not say")
    # A length counts from zero or from the start, as the writer liked.
    declared = [(at_s, min(until_s, start_s + until_s)) for at_s, until_s in ends]
    short = all(at_s < until_s - max(_SHORT_S, until_s * _SHORT_SHARE) for at_s, until_s in declared)
    return declared[0] if short else None


def _tagged_end(stream: VideoStream) -> float | None:
    """When a stream of Matroska ends, in seconds, by the tag that most writers add."""
    clock = re.fullmatch(r"(\d{1,9}):(\d\d):(\d\d(?:\.\d{1,9})?)\0*", stream.metadata.get("DURATION", ""))
    return int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3]) if clock else None


def _unit(stream: VideoStream) -> Fraction:
    return stream.time_base or _MICROSECONDS


def _start(stream: VideoStream) -> float:
    return float((stream.start_time or 0) * _unit(stream))
