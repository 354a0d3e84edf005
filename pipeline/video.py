"""Wild video files as decoded frames at the right time, or an error.

Everything here is meant to run inside `pipeline.sandbox`: the bytes are not trusted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import IO, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError, PatchWelcomeError
from av.stream import Disposition
from av.video.reformatter import ColorRange
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipeline import containers
from pipeline.display import Box, Display, display_of, thumbnail, to_rgb
from pipeline.errors import ClipError, ErrorCode
from pipeline.grid import Window
from pipeline.header_length import NO_TIMESTAMPS, duration, missed_end
from pipeline.packets import Decoder, Packets
from pipeline.timeline import Clock, Tally, Timed, Timeline

# Only formats that hold pictures themselves: FFmpeg would also follow playlists to other files and to the
# network, and draw a text file as a video.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,asf,ogg,mxf,gxf,ivf,obu,av1,"
    "h264,hevc,vvc,m4v,h263,vc1,dv,nut,gif,apng,yuv4mpegpipe,rm,wtv,nsv,swf,dirac,mjpeg"
)
# AVFMT_TS_DISCONT: formats whose clock may be set midway.
_CLOCK_MAY_JUMP = 0x0200
# A source is cut short or damaged when this share of the frames in its index is not there, or cannot be decoded.
_LOST_SHARE = 0.05
# Codecs whose standard says limited range where the stream says nothing; for gray others mean full range by it.
_LIMITED_UNLESS_SAID = ("h264", "hevc", "vvc")
# Formats that hold times of display: FFmpeg's names of Matroska and MP4 begin so.
_SAYS_TIMES = ("matroska", "mov")
# Frames that tell whether times of display can be believed.
_LOOKED_AT = 24
# Frames in one piece of `thumbnails`: 2 MB.
_CHUNK = 512


# Called as often as a file is read or decoded a little further, for whoever watches over a slow one.
Progress = Callable[[], object]


def unwatched() -> None:
    """The default `Progress`: does nothing."""


class Decoded(NamedTuple):
    """A frame, shown from `time_s` for `duration_s` seconds as `display` says.

    `joined` is false where it does not go on from the frame before it: after a jump in the file's time stamps, after
    frames that could not be decoded, or where the picture's shape changes.
    """

    time_s: float
    duration_s: float
    frame: av.VideoFrame
    display: Display
    joined: bool


class Thumbs(NamedTuple):
    """Consecutive frames of a source, small: `times` and `ends` of display, float64[n] in seconds; `pictures` uint8
    [n, height, width, 3] RGB of the whole stored picture, not turned; `joined` bool[n], see `Decoded`."""

    times: NDArray[np.float64]
    ends: NDArray[np.float64]
    pictures: NDArray[np.uint8]
    joined: NDArray[np.bool_]


@dataclass(frozen=True)
class Probe:
    """What a file says of itself.

    `display` is how its first frame is shown, `aspect` the width to the height of a stored pixel. `clock` is what
    times can be taken from, as the first frames show. `frames` is the count
    in the header, None where it has none. `max_pixels` is the limit that the file was probed with, and is decoded with.
    """

    display: Display
    aspect: float
    clock: Clock
    fps: float | None
    duration_s: float | None
    codec: str
    pix_fmt: str
    frames: int | None
    max_pixels: int


def probe(path: str | Path, max_pixels: int) -> Probe:
    """Open the file and decode one frame of it.

    Raises ClipError: SOURCE_UNREADABLE, SOURCE_EMPTY (no bytes), NOT_VIDEO (not a known format, or no video
    but cover art), TOO_LARGE (more than `max_pixels` a frame, as stored or as displayed), DECODE_ERROR.
    """
    with opened(path, max_pixels) as (container, stream):
        _check_pixels(stream.width, stream.height, max_pixels)
        packets, decoder = Packets(lambda: container.demux(stream)), Decoder(stream)
        decoded = (frame for packet in packets for frame in decoder.frames(packet))
        frame = next(decoded, None)
        if frame is None:
            raise _undecodable(decoder.error or packets.error)
        aspect = float(stream.sample_aspect_ratio or 1) or 1.0
        crop = containers.crop(
            Path(path),
            container.format.name,
            track_id=stream.id,
            number=container.streams.video.index(stream),
            width=frame.width,
            height=frame.height,
        )
        display = display_of(frame, aspect, crop)
        _check_pixels(display.width, display.height, max_pixels)
        rate = _rate(container, stream)
        return Probe(
            display=display,
            aspect=aspect,
            clock=_clock(container, stream, chain([frame], decoded)),
            fps=float(rate) if rate else None,
            duration_s=duration(container, stream, frame),
            codec=stream.codec_context.name,
            pix_fmt=frame.format.name,
            frames=stream.frames or None,
            max_pixels=max_pixels,
        )


def frames(
    path: str | Path, source: Probe, progress: Progress = unwatched, tally: Tally | None = None
) -> Generator[Decoded]:
    """Every frame, in order of presentation, in one thread, at strictly rising times; see `Timeline`.

    Times are FFmpeg's, after edit lists. `progress` is called for each frame and for each packet from further on in the
    file than any before, so that a file which never ends does not count as progress, and one that begins with much that
    is not shown does. `tally` counts frames. After a packet that the decoder refuses it goes on at the next key frame.
    Raises ClipError DECODE_ERROR where more than a few are refused, there is no frame, or the stream ends well before
    what the header declares.
    """
    with opened(path, source.max_pixels) as (container, stream):
        timeline = _timeline(container, stream, source.clock)
        timeline.tally = tally or timeline.tally
        shapes = _Shapes(stream, source)
        # All streams, since a container's length may be that of another one.
        packets = Packets(lambda: container.demux() if stream.duration is None else container.demux(stream))
        decoder = Decoder(stream)
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
            for frame in decoder.frames(packet):
                if decoder.resumed_at is not None and (frame.pts is None or frame.pts >= decoder.resumed_at):
                    decoder.resumed_at = None
                    timeline.interrupt()
                timed = timeline.place(frame)
                if timed is not None:
                    progress()
                    yield shapes.decoded(timed)
        for frame in decoder.rest() if packets.error else ():
            timed = timeline.place(frame)
            if timed is not None:
                yield shapes.decoded(timed)
        if not timeline.tally.decoded:
            raise _undecodable(decoder.error or packets.error)
        joined_midway = container.format.flags & _CLOCK_MAY_JUMP
        if decoder.error and decoder.lost - (decoder.lost_before if joined_midway else 0) > count * _LOST_SHARE:
            raise decode_error(decoder.error, _progress(timeline, stream)) from decoder.error
        if "mp4" in container.format.name and not containers.is_fragmented(Path(path)):
            indexed = len(stream.index_entries)
            if packets.error is not None and count < indexed:
                raise decode_error(packets.error, _progress(timeline, stream)) from packets.error
            if count < indexed * (1 - _LOST_SHARE) - 2:
                raise ClipError(ErrorCode.DECODE_ERROR, f"{_progress(timeline, stream)}: the file is cut short")
        elif not timeline.jumped:
            _check_end(container, stream, timeline, reach_s, packets.error)


def _clock(container: InputContainer, stream: VideoStream, decoded: Iterator[av.VideoFrame]) -> Clock:
    """Which times can be believed, by the first frames of a stream in which frames may be reordered."""
    timeline = _timeline(container, stream, Clock.DISPLAY)
    if stream.codec_context.has_b_frames or not container.format.name.startswith(_SAYS_TIMES):
        for frame in islice(decoded, _LOOKED_AT):
            timeline.place(frame)
    return timeline.clock


def _check_end(
    container: InputContainer, stream: VideoStream, timeline: Timeline, reach_s: float, error: FFmpegError | None
) -> None:
    """Raises ClipError DECODE_ERROR for a stream that ends well before what its header declares; where that says
    nothing, for one whose file could not be read on because of `error`."""
    try:
        missed = missed_end(container, stream, timeline.end_s, reach_s)
    except ValueError:
        if error is not None:
            raise decode_error(error, _progress(timeline, stream)) from error
        return
    if missed is not None:
        text = f"{_progress(timeline, stream)}: the file ends at {missed[0]:.2f} of {missed[1]:.2f} s"
        raise ClipError(ErrorCode.DECODE_ERROR, text)


# Width and height of a stored picture, and of a stored pixel the width to the height by the codec.
_Stored = tuple[int, int, float]


class _Shapes:
    """Says of each frame how it is shown: most are as the first one, but a stream may change its size midway."""

    def __init__(self, stream: VideoStream, source: Probe) -> None:
        self._codec, self._source = stream.codec_context, source
        self._first: _Stored | None = None
        self._stored: _Stored | None = None
        self._display = source.display
        self._gray_is_limited = self._codec.name in _LIMITED_UNLESS_SAID

    def decoded(self, timed: Timed) -> Decoded:
        frame, joined = timed.frame, timed.joined
        if self._gray_is_limited and frame.color_range == ColorRange.UNSPECIFIED:
            frame.color_range = ColorRange.MPEG
        stored = frame.width, frame.height, float(self._codec.sample_aspect_ratio or 1) or 1.0
        if self._first is None:
            self._first = self._stored = stored
        if stored != self._stored:
            # What the container says holds for the first shape; the codec knows of the others.
            display = self._source.display if stored == self._first else display_of(frame, stored[2], None)
            _check_pixels(display.width, display.height, self._source.max_pixels)
            # The same picture in another resolution goes on.
            joined = joined and _alike(display, self._display)
            self._display = display
        self._stored = stored
        return Decoded(timed.time_s, timed.duration_s, frame, self._display, joined)


def _alike(one: Display, other: Display) -> bool:
    """Whether two displays have the same aspect, but for a few pixels' rounding."""
    return abs(one.width * other.height - other.width * one.height) <= 2 * max(one.width, one.height, other.width)


def cut(
    decoded: Iterator[Decoded],
    source: Probe,
    windows: Sequence[Window],
    fps: float,
    size: tuple[int, int],
    box: Box | None = None,
) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
    """Each window with its frames, uint8 [T, H, W, 3] RGB, in order of time, in one pass over a source's `frames`.

    `windows` are some or all of those that `Grid.windows` made of this source with a grid of `fps`: they do not
    overlap. `box` is a part of the picture as `source` shows it. A source frame is converted at most once, and only if
    it is shown. Errors are those of `decoded`.
    """
    ahead = next(decoded, None)
    current: Decoded | None = None
    picture: NDArray[np.uint8] | None = None
    for window in sorted(windows, key=lambda window: window.start_s):
        clip = np.empty((window.frames, size[1], size[0], 3), np.uint8)
        for point, limit_s in enumerate(window.limits(fps)):
            while ahead is not None and ahead.time_s <= limit_s:
                current, picture = ahead, None
                ahead = next(decoded, None)
            # Windows of an older version may begin a frame before the first one, where times of display were wrong.
            current = current or ahead
            if current is None:
                text = f"the file has no frame at {window.start_s:.3f} s"
                raise ClipError(ErrorCode.DECODE_ERROR, text)
            if picture is None:
                # The bars are known of the source's own shape alone.
                part = box if current.display == source.display else None
                picture = to_rgb(current.frame, current.display, size, part)
            clip[point] = picture
        yield window, clip
        del clip  # before the next one is allocated: a clip may be 100 MB


def thumbnails(decoded: Iterator[Decoded]) -> Iterator[Thumbs]:
    """Every one of a source's `frames` as a small picture, of the size that TransNetV2 takes, in pieces.

    Errors are those of `decoded`.
    """
    while chunk := list(islice(map(_thumb, decoded), _CHUNK)):
        times, ends, pictures, joined = zip(*chunk, strict=True)
        yield Thumbs(np.array(times), np.array(ends), np.stack(pictures), np.array(joined))


def _thumb(decoded: Decoded) -> tuple[float, float, NDArray[np.uint8], bool]:
    end_s = decoded.time_s + decoded.duration_s
    return decoded.time_s, end_s, thumbnail(decoded.frame, decoded.display.crop), decoded.joined


@contextmanager
def opened(file: str | Path | IO[bytes], max_pixels: int) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file, by its path or open, and its video stream, ready to decode in one thread.

    Raises ClipError: SOURCE_EMPTY, SOURCE_UNREADABLE, or NOT_VIDEO.
    """
    try:
        if isinstance(file, str | Path):
            if Path(file).stat().st_size == 0:
                raise ClipError(ErrorCode.SOURCE_EMPTY, "the file has no bytes")
            # the prefix keeps FFmpeg from reading a protocol into a file's name
            file = f"file:{file}"
        options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
        container = av.open(file, "r", container_options=options, metadata_errors="replace")
    except OSError as error:
        raise ClipError(ErrorCode.SOURCE_UNREADABLE, str(error.strerror or error)) from error
    except FFmpegError as error:
        if isinstance(error, MemoryError):
            raise
        raise ClipError(ErrorCode.NOT_VIDEO, f"FFmpeg cannot open it: {error.strerror}") from error
    with container:
        stream = container.streams.best("video")
        if stream is None or stream.disposition & Disposition.attached_pic:
            raise ClipError(ErrorCode.NOT_VIDEO, "the file has no video stream")
        # None, although PyAV's types do not say so, for a codec that this FFmpeg does not know.
        if getattr(stream, "codec_context", None) is None:
            raise ClipError(ErrorCode.NOT_VIDEO, "FFmpeg has no decoder for its video stream")
        stream.codec_context.options = {"max_pixels": str(max_pixels)}
        stream.codec_context.thread_count = 1
        yield container, stream


def _timeline(container: InputContainer, stream: VideoStream, clock: Clock) -> Timeline:
    rate = _rate(container, stream)
    clock_may_jump = bool(container.format.flags & _CLOCK_MAY_JUMP)
    usual_s = float(1 / rate) if rate else 0.04
    return Timeline(stream, usual_s, clock=clock, clock_may_jump=clock_may_jump)


def _rate(container: InputContainer, stream: VideoStream) -> Fraction | None:
    """Frames a second; for a raw stream FFmpeg's format always says 25, so the codec is asked."""
    if container.format.flags & NO_TIMESTAMPS:
        return stream.guessed_rate or stream.average_rate
    return stream.average_rate or stream.guessed_rate


def _progress(timeline: Timeline, stream: VideoStream) -> str:
    count = timeline.tally.decoded
    # a fragmented MP4 counts its first fragment alone
    return f"decoded {count} of {stream.frames} frames" if stream.frames > count else f"decoded {count} frames"


def _undecodable(error: FFmpegError | None) -> Exception:
    """For a file that gives no frame at all."""
    if error is None:
        return ClipError(ErrorCode.DECODE_ERROR, "no frame could be decoded")
    return decode_error(error, "no frame could be decoded")


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ClipError(ErrorCode.TOO_LARGE, f"{width}x{height} is more than {max_pixels} pixels")


def decode_error(error: FFmpegError, what: str) -> Exception:
    """`error` as a ClipError; FFmpeg out of memory stays a MemoryError."""
    if isinstance(error, MemoryError):
        return error
    # Decoders give error numbers of the system that mean other things there, such as "not permitted".
    known = isinstance(error, InvalidDataError | PatchWelcomeError)
    reason = error.strerror if known else f"the decoder refused it (error {error.errno})"
    return ClipError(ErrorCode.DECODE_ERROR, f"{what}: {reason}")
