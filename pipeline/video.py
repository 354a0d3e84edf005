"""Wild video files as RGB frames at the right time, the right way up and in the right colours, or an error.

Everything here is meant to run inside `pipeline.sandbox`: the bytes are not trusted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import IO

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from filters import bars
from filters.bars import Box
from pipeline.decode import PLANAR, packed
from pipeline.errors import ClipError, ErrorCode
from pipeline.grid import Window

# Only formats that hold pictures themselves: FFmpeg would also follow playlists to other files and to the
# network, and draw a text file as a video.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,asf,ogg,mxf,gxf,ivf,obu,av1,"
    "h264,hevc,vvc,m4v,h263,vc1,dv,nut,gif,apng,yuv4mpegpipe,rm,wtv,nsv,swf,dirac,mjpeg"
)
# AVFMT_NOTIMESTAMPS: raw streams, whose duration FFmpeg only guesses from the bit rate.
_NO_TIMESTAMPS = 0x0080
# AV_TIME_BASE: the unit of a container's times, and of a stream's that names none.
_MICROSECONDS = Fraction(1, av.time_base)
# AVCOL_SPC_UNSPECIFIED and _RESERVED.
_NO_MATRIX = (2, 3)
# A source is cut short when it ends this much before its header says: headers are often a little off.
_SHORT_S, _SHORT_SHARE = 1.0, 0.01
# ... or when this share of its frames is not there: an AVI counts frames that it dropped.
_LOST_SHARE = 0.05
# Full chroma and exact rounding: without them swscale's fast path darkens a picture by 2 levels.
_SCALE = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
# Frames in one piece of `thumbnails`: 2 MB.
_CHUNK = 512
# Frames that `content_box` looks at, and the longest source that it decodes for them from end to end.
_SPREAD, _SPREAD_BY_DECODING_S = 12, 60.0


# Called as often as a file is read or decoded a little further, for whoever watches over a slow one.
Progress = Callable[[], object]
# A frame with its timestamp and duration in seconds, as `frames` gives it.
Decoded = tuple[float, float, av.VideoFrame]


def _unwatched() -> None:
    pass


@dataclass(frozen=True)
class Probe:
    """What a file says of itself.

    `width` and `height` are those of the picture as displayed: rotation and sample aspect ratio applied.
    `rotation` is the counterclockwise turn for the stored picture (0, 90, 180 or 270 degrees), before
    it is mirrored left to right if `mirrored`. `frames` is the count in the header, None where it has none.
    `max_pixels` is the limit that the file was probed with; decoding keeps to it.
    """

    width: int
    height: int
    rotation: int
    mirrored: bool
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
        try:
            frame = next(container.decode(stream), None)
        except FFmpegError as error:
            raise _decode_error(error, "the first frame cannot be decoded") from error
        if frame is None:
            raise ClipError(ErrorCode.DECODE_ERROR, "no frame could be decoded")
        aspect = float(stream.sample_aspect_ratio or 1) or 1.0
        width, height = max(1, round(frame.width * aspect)), frame.height
        _check_pixels(width, height, max_pixels)
        rotation, mirrored = _orientation(frame)
        if rotation in (90, 270):
            width, height = height, width
        rate = stream.average_rate or stream.guessed_rate
        return Probe(
            width=width,
            height=height,
            rotation=rotation,
            mirrored=mirrored,
            fps=float(rate) if rate else None,
            duration_s=duration(container, stream),
            codec=stream.codec_context.name,
            pix_fmt=frame.format.name,
            frames=stream.frames or None,
            max_pixels=max_pixels,
        )


def frames(path: str | Path, source: Probe, progress: Progress = _unwatched) -> Generator[Decoded]:
    """Every frame as (timestamp, duration, frame), both in seconds, in order of presentation, in one thread.

    Timestamps are FFmpeg's, after edit lists, and strictly rising: a frame that repeats one is left out.
    `progress` is called for each of them and for each packet from further on in the file than any before, so that a
    file which never ends does not count as progress, and one that begins with much that is not shown does.
    Raises ClipError DECODE_ERROR where a frame cannot be decoded, timestamps jump back by more than a second,
    there is no frame, or the stream ends well before what the header declares.
    """
    with opened(path, source.max_pixels) as (container, stream):
        rate = stream.average_rate or stream.guessed_rate
        unit = stream.time_base or _MICROSECONDS
        usual_s = float(1 / rate) if rate else 0.04
        # MP4 keeps a full index, after edit lists; elsewhere there is at most the count in the header
        indexed = len(stream.index_entries) if "mp4" in container.format.name else stream.frames
        packets = count = 0
        furthest = -1
        last_s, end_s, reach_s = -math.inf, 0.0, 0.0
        # a container without a duration for this stream may owe its length to another: read those as well
        others = () if stream.duration else tuple(s for s in container.streams if s.type == "audio")
        try:
            for packet in container.demux(stream, *others):
                if packet.pos is not None and packet.pos > furthest:
                    furthest = packet.pos
                    progress()
                if packet.pts is not None:
                    reach_s = max(reach_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if packet.stream is not stream:
                    continue
                packets += packet.size > 0
                for frame in stream.decode(packet):
                    duration_s = float(frame.duration * unit) if frame.duration else usual_s
                    time_s = end_s if frame.pts is None else float(frame.pts * unit)
                    if time_s < last_s - 1:
                        text = f"timestamps jump back from {last_s:.3f} to {time_s:.3f} s"
                        raise ClipError(ErrorCode.DECODE_ERROR, text)
                    count += 1
                    if time_s > last_s:
                        last_s, end_s = time_s, time_s + duration_s
                        progress()
                        yield time_s, duration_s, frame
        except FFmpegError as error:
            raise _decode_error(error, _progress(count, stream)) from error
        if not count:
            raise ClipError(ErrorCode.DECODE_ERROR, "no frame could be decoded")
        if packets < indexed * (1 - _LOST_SHARE) - 2:
            raise ClipError(ErrorCode.DECODE_ERROR, f"{_progress(count, stream)}: the file is cut short")
        declared_s = _declared_end(container, stream)
        reached_s = end_s if stream.duration else max(end_s, reach_s)
        if reached_s < declared_s - max(_SHORT_S, declared_s * _SHORT_SHARE):
            text = f"{_progress(count, stream)}: the file ends at {reached_s:.2f} of {declared_s:.2f} s"
            raise ClipError(ErrorCode.DECODE_ERROR, text)


def to_rgb(frame: av.VideoFrame, source: Probe, size: tuple[int, int], box: Box | None = None) -> NDArray[np.uint8]:
    """A decoded frame as uint8 [H, W, 3] RGB of `size` (width, height), as a player would show it.

    The frame is turned, stretched to square pixels, scaled (bicubic) until it covers `size` and cropped at
    the centre. `box` (x0, y0, x1, y1 in displayed pixels) takes that part alone. Where the file names no
    colour matrix BT.709 is taken for HD and BT.601 below, as players do. HDR is not tone mapped.
    """
    width, height = size
    x0, y0, x1, y1 = box or (0, 0, source.width, source.height)
    scale = max(width / (x1 - x0), height / (y1 - y0))
    wide = max(width, round(source.width * scale))
    high = max(height, round(source.height * scale))
    stored = (high, wide) if source.rotation in (90, 270) else (wide, high)
    picture = packed(_scaled(frame, stored, PLANAR, _SCALE))
    if source.rotation:
        picture = np.rot90(picture, source.rotation // 90)
    if source.mirrored:
        picture = picture[:, ::-1]
    left = min(max(0, round((x0 + x1) / 2 * scale - width / 2)), wide - width)
    top = min(max(0, round((y0 + y1) / 2 * scale - height / 2)), high - height)
    return np.ascontiguousarray(picture[top : top + height, left : left + width])


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
    overlap. A source frame is converted at most once, and only if it is shown. Errors are those of `decoded`.
    """
    ahead = next(decoded, None)
    shown: av.VideoFrame | None = None
    picture: NDArray[np.uint8] | None = None
    for window in sorted(windows, key=lambda window: window.start_s):
        clip = np.empty((window.frames, size[1], size[0], 3), np.uint8)
        for point, limit_s in enumerate(window.limits(fps)):
            while ahead is not None and ahead[0] <= limit_s:
                shown, picture = ahead[2], None
                ahead = next(decoded, None)
            if shown is None:
                text = f"the file has no frame at {window.start_s:.3f} s"
                raise ClipError(ErrorCode.DECODE_ERROR, text)
            if picture is None:
                picture = to_rgb(shown, source, size, box)
            clip[point] = picture
        yield window, clip
        del clip  # before the next one is allocated: a clip may be 100 MB


def thumbnails(
    decoded: Iterator[Decoded], size: tuple[int, int] = (48, 27)
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.uint8]]]:
    """Every one of a source's `frames` as a small picture: pieces of (timestamps, ends, pictures).

    Timestamps and ends of display are float64[n] in seconds; pictures are uint8 [n, height, width, 3] RGB of
    the whole stored picture, squeezed to `size` (width, height) and not turned. The default is the size that
    TransNetV2 takes. Errors are those of `decoded`.
    """
    times: list[float] = []
    ends: list[float] = []
    pictures: list[NDArray[np.uint8]] = []
    for time_s, duration_s, frame in decoded:
        times.append(time_s)
        ends.append(time_s + duration_s)
        pictures.append(thumbnail(frame, size))
        if len(times) == _CHUNK:
            yield np.array(times), np.array(ends), np.stack(pictures)
            times, ends, pictures = [], [], []
    if times:
        yield np.array(times), np.array(ends), np.stack(pictures)


def thumbnail(frame: av.VideoFrame, size: tuple[int, int] = (48, 27)) -> NDArray[np.uint8]:
    """A decoded frame squeezed to `size` (width, height), not turned: uint8 [height, width, 3] RGB."""
    return np.asarray(_scaled(frame, size, "rgb24", Interpolation.AREA).to_ndarray(), np.uint8)


def content_box(path: str | Path, source: Probe, progress: Progress = _unwatched) -> Box | None:
    """Where the picture is inside letterbox or pillarbox bars: (x0, y0, x1, y1) in displayed pixels, or None.

    Looks at about a dozen frames spread over the file. `progress` and errors: see `frames`.
    """
    size = (source.width, source.height)
    return bars.content(to_rgb(frame, source, size) for frame in _spread(path, source, progress))


def _spread(path: str | Path, source: Probe, progress: Progress) -> Iterator[av.VideoFrame]:
    """Frames at even steps of a source of up to a minute; of a longer one the key frames next to them.

    A source that lasts longer than it says is looked at for a minute: it may have no end.
    """
    length_s = source.duration_s or float(_SPREAD)
    if length_s <= _SPREAD_BY_DECODING_S:
        due_s = -math.inf
        with closing(frames(path, source, progress)) as decoded:
            first_s = None
            for time_s, _, frame in decoded:
                first_s = time_s if first_s is None else first_s
                if time_s - first_s > _SPREAD_BY_DECODING_S:
                    return
                if time_s >= due_s:
                    due_s = time_s + length_s / _SPREAD
                    yield frame
        return
    with opened(path, source.max_pixels) as (container, stream):
        try:
            for index in range(_SPREAD):
                container.seek((container.start_time or 0) + round(length_s * index / _SPREAD * av.time_base))
                yield from islice(container.decode(stream), 1)
                progress()
        except FFmpegError as error:
            raise _decode_error(error, "seeking failed") from error


def _scaled(frame: av.VideoFrame, size: tuple[int, int], layout: str, how: Interpolation) -> av.VideoFrame:
    """The stored picture scaled to `size` in RGB of that layout; a new scaler costs next to nothing."""
    matrix = None
    if frame.colorspace in _NO_MATRIX:
        hd = frame.width >= 1280 or frame.height > 576
        matrix = Colorspace.ITU709 if hd else Colorspace.ITU601
    try:
        return VideoReformatter().reformat(
            frame,
            *size,
            format=layout,
            src_colorspace=matrix,
            dst_color_range=ColorRange.JPEG,
            interpolation=how,
            threads=1,
        )
    except FFmpegError as error:
        raise _decode_error(error, f"{frame.format.name} cannot be turned into RGB") from error


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
        stream.codec_context.options = {"max_pixels": str(max_pixels)}
        stream.codec_context.thread_count = 1
        yield container, stream


def _orientation(frame: av.VideoFrame) -> tuple[int, bool]:
    """Counterclockwise turn in degrees, then mirrored or not, from the frame's display matrix.

    The matrix (a b u c d v x y w) takes a stored (x, y) to (a x + c y, b x + d y), with y pointing down.
    """
    if "DISPLAYMATRIX" not in frame.side_data:
        return 0, False
    a, b, _, c, d, *_ = np.frombuffer(bytes(frame.side_data["DISPLAYMATRIX"]), np.int32).tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return (180 if d < 0 else 0), (a < 0) != (d < 0)
    return (90 if b < 0 else 270), (b < 0) == (c < 0)


def duration(container: InputContainer, stream: VideoStream) -> float | None:
    """Seconds by the file's header; None where it does not say."""
    if stream.duration:
        return float(stream.duration * (stream.time_base or _MICROSECONDS))
    return float(container.duration * _MICROSECONDS) if container.duration else None


def _declared_end(container: InputContainer, stream: VideoStream) -> float:
    """When the stream ends by its header, in seconds; 0 where the header does not say."""
    if container.format.flags & _NO_TIMESTAMPS:
        return 0.0
    duration_s = duration(container, stream)
    if duration_s is None:
        return 0.0
    if stream.duration:
        return float((stream.start_time or 0) * (stream.time_base or _MICROSECONDS)) + duration_s
    return float((container.start_time or 0) * _MICROSECONDS) + duration_s


def _progress(count: int, stream: VideoStream) -> str:
    # a fragmented MP4 counts its first fragment alone
    return f"decoded {count} of {stream.frames} frames" if stream.frames > count else f"decoded {count} frames"


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ClipError(ErrorCode.TOO_LARGE, f"{width}x{height} is more than {max_pixels} pixels")


def _decode_error(error: FFmpegError, what: str) -> Exception:
    """`error` as a ClipError; FFmpeg out of memory stays a MemoryError."""
    if isinstance(error, MemoryError):
        return error
    return ClipError(ErrorCode.DECODE_ERROR, f"{what}: {error.strerror}")
