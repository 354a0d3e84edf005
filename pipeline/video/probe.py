"""Opens an untrusted video file and probes its header and first frames.

Everything here is meant to run inside `pipeline.video.sandbox`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import IO

import av
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError, PatchWelcomeError
from av.stream import Disposition
from av.video.stream import VideoStream

from pipeline.errors import ClipError, ErrorCode
from pipeline.video import containers
from pipeline.video.display import Display, display_of
from pipeline.video.header_length import NO_TIMESTAMPS, read_duration
from pipeline.video.packets import Decoder, Packets
from pipeline.video.timeline import Clock, Timeline

# Only formats that contain pictures: FFmpeg would also follow playlists to other files and to the network, and
# render a text file as a video.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,asf,ogg,mxf,gxf,ivf,obu,av1,"
    "h264,hevc,vvc,m4v,h263,vc1,dv,nut,gif,apng,yuv4mpegpipe,rm,wtv,nsv,swf,dirac,mjpeg"
)
# AVFMT_TS_DISCONT: formats whose clock may be set midway.
CLOCK_MAY_JUMP = 0x0200
# Formats that store times of display: the beginnings of FFmpeg's names of Matroska and MP4.
_HAS_DISPLAY_TIMES = ("matroska", "mov")
# Frames by which to decide whether times of display can be trusted.
_PROBED_FRAMES = 24

# Called each time a file is read or decoded a little further, so that a slow one can be watched.
Progress = Callable[[], object]


def unwatched() -> None:
    """The default `Progress`: does nothing."""


@dataclass(frozen=True)
class Probe:
    """Properties of a file.

    `display` is how its first frame is shown, `aspect` the width to height of a stored pixel. `clock` is the source of
    times that the first frames show to be reliable. `frames` is the count in the header, None if it has none.
    `max_pixels` is the limit with which the file was probed and is decoded.
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


def probe_video(path: str | Path, max_pixels: int) -> Probe:
    """Open the file and decode one frame of it.

    Raises ClipError: SOURCE_UNREADABLE, SOURCE_EMPTY (no bytes), NOT_VIDEO (not a known format, or no video
    but cover art), TOO_LARGE (more than `max_pixels` a frame, as stored or as displayed), DECODE_ERROR.
    """
    with open_video(path, max_pixels) as (container, stream):
        check_pixels(stream.width, stream.height, max_pixels)
        packets, decoder = Packets(lambda: container.demux(stream)), Decoder(stream)
        decoded = (frame for packet in packets for frame in decoder.frames(packet))
        frame = next(decoded, None)
        if frame is None:
            raise undecodable_error(decoder.error or packets.error)
        aspect = float(stream.sample_aspect_ratio or 1) or 1.0
        crop = containers.read_crop(
            Path(path),
            container.format.name,
            track_id=stream.id,
            number=container.streams.video.index(stream),
            width=frame.width,
            height=frame.height,
        )
        display = display_of(frame, aspect, crop)
        check_pixels(display.width, display.height, max_pixels)
        rate = frame_rate(container, stream)
        return Probe(
            display=display,
            aspect=aspect,
            clock=_choose_clock(container, stream, chain([frame], decoded)),
            fps=float(rate) if rate else None,
            duration_s=read_duration(container, stream, frame),
            codec=stream.codec_context.name,
            pix_fmt=frame.format.name,
            frames=stream.frames or None,
            max_pixels=max_pixels,
        )


@contextmanager
def open_video(file: str | Path | IO[bytes], max_pixels: int) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file, by its path or open, and its video stream, ready to decode in one thread.

    Raises ClipError: SOURCE_EMPTY, SOURCE_UNREADABLE, or NOT_VIDEO.
    """
    try:
        if isinstance(file, str | Path):
            if Path(file).stat().st_size == 0:
                raise ClipError(ErrorCode.SOURCE_EMPTY, "the file has no bytes")
            # the prefix keeps FFmpeg from taking part of a file's name for a protocol
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


def make_timeline(container: InputContainer, stream: VideoStream, clock: Clock) -> Timeline:
    rate = frame_rate(container, stream)
    clock_may_jump = bool(container.format.flags & CLOCK_MAY_JUMP)
    usual_s = float(1 / rate) if rate else 0.04
    return Timeline(stream, usual_s, clock=clock, clock_may_jump=clock_may_jump)


def frame_rate(container: InputContainer, stream: VideoStream) -> Fraction | None:
    """Frames a second; for a raw stream FFmpeg's format always says 25, so the codec is asked."""
    if container.format.flags & NO_TIMESTAMPS:
        return stream.guessed_rate or stream.average_rate
    return stream.average_rate or stream.guessed_rate


def _choose_clock(container: InputContainer, stream: VideoStream, decoded: Iterator[av.VideoFrame]) -> Clock:
    """Which times can be trusted, by the first frames of a stream in which frames may be reordered."""
    timeline = make_timeline(container, stream, Clock.DISPLAY)
    if stream.codec_context.has_b_frames or not container.format.name.startswith(_HAS_DISPLAY_TIMES):
        for frame in islice(decoded, _PROBED_FRAMES):
            timeline.place(frame)
    return timeline.clock


def undecodable_error(error: FFmpegError | None) -> Exception:
    """The error for a file without a decodable frame."""
    if error is None:
        return ClipError(ErrorCode.DECODE_ERROR, "no frame could be decoded")
    return decode_error(error, "no frame could be decoded")


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ClipError(ErrorCode.TOO_LARGE, f"{width}x{height} is more than {max_pixels} pixels")


def decode_error(error: FFmpegError, context: str) -> Exception:
    """`error` as a ClipError; FFmpeg out of memory stays a MemoryError."""
    if isinstance(error, MemoryError):
        return error
    # Decoders return system error numbers with a different meaning, such as "not permitted".
    has_own_code = isinstance(error, InvalidDataError | PatchWelcomeError)
    reason = error.strerror if has_own_code else f"the decoder refused it (error {error.errno})"
    return ClipError(ErrorCode.DECODE_ERROR, f"{context}: {reason}")
