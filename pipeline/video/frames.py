"""Decodes untrusted video files into frames at the right times.

Everything here is meant to run inside `pipeline.video.sandbox`.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.reformatter import ColorRange
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipeline.errors import ClipError, ErrorCode
from pipeline.video import containers
from pipeline.video.display import Box, Display, display_of, thumbnail, to_rgb
from pipeline.video.grid import Window
from pipeline.video.header_length import find_missed_end
from pipeline.video.packets import Decoder, Packets
from pipeline.video.probe import (
    CLOCK_MAY_JUMP,
    Probe,
    Progress,
    check_pixels,
    decode_error,
    make_timeline,
    open_video,
    undecodable_error,
    unwatched,
)
from pipeline.video.timeline import Tally, TimedFrame, Timeline

# A source is cut short or damaged if this share of the frames in its index is missing or cannot be decoded.
_LOST_SHARE = 0.05
# Codecs whose standard means limited range if the stream does not say; for gray, other codecs mean full range.
_LIMITED_BY_DEFAULT = ("h264", "hevc", "vvc")
# Frames in one chunk of `read_thumbnails`: 2 MB.
_CHUNK = 512


class DecodedFrame(NamedTuple):
    """A frame, shown from `time_s` for `duration_s` seconds as `display` says.

    `joined` is false if it does not continue the frame before it: after a jump in the file's time stamps, after frames
    that could not be decoded, or where the picture's shape changes.
    """

    time_s: float
    duration_s: float
    frame: av.VideoFrame
    display: Display
    joined: bool


class ThumbnailChunk(NamedTuple):
    """Thumbnails of consecutive frames of a source: `times` and `ends` of display, float64[n] in seconds; `pictures`
    uint8 [n, height, width, 3] RGB of the whole stored picture, not turned; `joined` bool[n], see `DecodedFrame`."""

    times: NDArray[np.float64]
    ends: NDArray[np.float64]
    pictures: NDArray[np.uint8]
    joined: NDArray[np.bool_]


class FrameTimes(NamedTuple):
    """When consecutive frames of a source are shown: the last arguments of `grid.shots_of`."""

    times: NDArray[np.float64]
    end_s: float
    joined: NDArray[np.bool_]


def read_frames(
    path: str | Path, source: Probe, progress: Progress = unwatched, tally: Tally | None = None
) -> Generator[DecodedFrame]:
    """Every frame, in order of presentation, in one thread, at strictly rising times; see `Timeline`.

    Times are FFmpeg's, after edit lists. `progress` is called for each frame and for each packet further in the file
    than any before, so that a file which never ends does not count as progress, but one that begins with much hidden
    data does. `tally` counts frames. After a packet that the decoder refuses, decoding resumes at the next key
    frame. Raises ClipError DECODE_ERROR if more than a few are refused, there is no frame, or the stream ends well
    before the end that the header declares.
    """
    with open_video(path, source.max_pixels) as (container, stream):
        timeline = make_timeline(container, stream, source.clock)
        timeline.tally = tally or timeline.tally
        shapes = _ShapeTracker(stream, source)
        # All streams, since the container's length may be that of another stream.
        packets = Packets(lambda: container.demux() if stream.duration is None else container.demux(stream))
        decoder = Decoder(stream)

        def place(frames: list[av.VideoFrame]) -> Iterator[DecodedFrame]:
            for frame in frames:
                if decoder.resumed_at is not None and (frame.pts is None or frame.pts >= decoder.resumed_at):
                    decoder.resumed_at = None
                    timeline.interrupt()
                timed = timeline.place(frame)
                if timed is not None:
                    progress()
                    yield shapes.describe(timed)

        count, furthest, reach_s = 0, -1, -math.inf
        for packet in packets:
            if packet.pos is not None and packet.pos > furthest:
                furthest = packet.pos
                progress()
            if packet.pts is not None:
                reach_s = max(reach_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream is not stream:
                continue
            count += packet.size > 0
            yield from place(decoder.frames(packet))
        if packets.error:
            yield from place(decoder.flush())
        if not timeline.tally.decoded:
            raise undecodable_error(decoder.error or packets.error)
        joined_midway = container.format.flags & CLOCK_MAY_JUMP
        if decoder.error and decoder.lost - (decoder.lost_before if joined_midway else 0) > count * _LOST_SHARE:
            raise decode_error(decoder.error, _describe_progress(timeline, stream)) from decoder.error
        if "mp4" in container.format.name and not containers.is_fragmented(Path(path)):
            indexed = len(stream.index_entries)
            if packets.error is not None and count < indexed:
                raise decode_error(packets.error, _describe_progress(timeline, stream)) from packets.error
            if count < indexed * (1 - _LOST_SHARE) - 2:
                raise ClipError(
                    ErrorCode.DECODE_ERROR, f"{_describe_progress(timeline, stream)}: the file is cut short"
                )
        elif not timeline.jumped:
            _check_end(container, stream, timeline, reach_s, packets.error)


def _check_end(
    container: InputContainer, stream: VideoStream, timeline: Timeline, reach_s: float, error: FFmpegError | None
) -> None:
    """Raises ClipError DECODE_ERROR for a stream that ends well before the end its header declares or, if it declares
    none, for a file that could not be read further because of `error`."""
    try:
        ends = find_missed_end(container, stream, timeline.end_s, reach_s)
    except ValueError:
        if error is not None:
            raise decode_error(error, _describe_progress(timeline, stream)) from error
        return
    if ends is not None:
        text = f"{_describe_progress(timeline, stream)}: the file ends at {ends[0]:.2f} of {ends[1]:.2f} s"
        raise ClipError(ErrorCode.DECODE_ERROR, text)


# Width and height of a stored picture, and the aspect (width to height) of a stored pixel by the codec.
_Shape = tuple[int, int, float]


class _ShapeTracker:
    """Tracks how each frame is shown: most are like the first, but a stream may change its size midway."""

    def __init__(self, stream: VideoStream, source: Probe) -> None:
        self._codec, self._source = stream.codec_context, source
        self._first: _Shape | None = None
        self._stored: _Shape | None = None
        self._display = source.display
        self._gray_is_limited = self._codec.name in _LIMITED_BY_DEFAULT

    def describe(self, timed: TimedFrame) -> DecodedFrame:
        frame, joined = timed.frame, timed.joined
        if self._gray_is_limited and frame.color_range == ColorRange.UNSPECIFIED:
            frame.color_range = ColorRange.MPEG
        stored = frame.width, frame.height, float(self._codec.sample_aspect_ratio or 1) or 1.0
        if self._first is None:
            self._first = self._stored = stored
        if stored != self._stored:
            # The container describes the first shape; only the codec knows the others.
            display = self._source.display if stored == self._first else display_of(frame, stored[2], None)
            check_pixels(display.width, display.height, self._source.max_pixels)
            # The same picture in another resolution continues.
            joined = joined and _have_same_aspect(display, self._display)
            self._display = display
        self._stored = stored
        return DecodedFrame(timed.time_s, timed.duration_s, frame, self._display, joined)


def _have_same_aspect(first: Display, second: Display) -> bool:
    """Whether two displays have the same aspect, up to a few pixels of rounding."""
    return abs(first.width * second.height - second.width * first.height) <= 2 * max(
        first.width, first.height, second.width
    )


def cut_windows(
    decoded: Iterator[DecodedFrame],
    source: Probe,
    windows: Sequence[Window],
    fps: float,
    size: tuple[int, int],
    box: Box | None = None,
) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
    """Each window with its frames, uint8 [T, H, W, 3] RGB, in order of time, in one pass over a source's `read_frames`.

    `windows` are some or all of the non-overlapping windows that `Grid.windows` made of this source with a grid of
    `fps`. `box` is a part of the picture as `source` shows it. A source frame is converted at most once, and only if
    it is shown. Errors are those of `decoded`.
    """
    ahead = next(decoded, None)
    current: DecodedFrame | None = None
    picture: NDArray[np.uint8] | None = None
    for window in sorted(windows, key=lambda window: window.start_s):
        clip = np.empty((window.frames, size[1], size[0], 3), np.uint8)
        for point, limit_s in enumerate(window.limits(fps)):
            while ahead is not None and ahead.time_s <= limit_s:
                current, picture = ahead, None
                ahead = next(decoded, None)
            # Windows of an older version, which had wrong times of display, may begin a frame before the first one.
            current = current or ahead
            if current is None:
                text = f"the file has no frame at {window.start_s:.3f} s"
                raise ClipError(ErrorCode.DECODE_ERROR, text)
            if picture is None:
                # The bars are known only for the source's own shape.
                part = box if current.display == source.display else None
                picture = to_rgb(current.frame, current.display, size, part)
            clip[point] = picture
        yield window, clip
        del clip  # before the next one is allocated: a clip may be 100 MB


def collect_times(decoded: Iterable[DecodedFrame]) -> FrameTimes:
    """The times of display of frames, of which there is at least one."""
    spans = [(frame.time_s, frame.time_s + frame.duration_s, frame.joined) for frame in decoded]
    times, ends, joined = zip(*spans, strict=True)
    return FrameTimes(np.array(times), ends[-1], np.array(joined))


def read_thumbnails(decoded: Iterator[DecodedFrame]) -> Iterator[ThumbnailChunk]:
    """Every frame of a source's `read_frames` as a thumbnail of the size that TransNetV2 takes, in chunks.

    Errors are those of `decoded`.
    """
    while chunk := list(islice(map(_shrink, decoded), _CHUNK)):
        times, ends, pictures, joined = zip(*chunk, strict=True)
        yield ThumbnailChunk(np.array(times), np.array(ends), np.stack(pictures), np.array(joined))


def _shrink(decoded: DecodedFrame) -> tuple[float, float, NDArray[np.uint8], bool]:
    end_s = decoded.time_s + decoded.duration_s
    return decoded.time_s, end_s, thumbnail(decoded.frame, decoded.display.crop), decoded.joined


def _describe_progress(timeline: Timeline, stream: VideoStream) -> str:
    count = timeline.tally.decoded
    # a fragmented MP4 counts only its first fragment
    return f"decoded {count} of {stream.frames} frames" if stream.frames > count else f"decoded {count} frames"
