"""Decodes our own clips to the exact frames that the annotators saw; light, because trainers import it.

FFmpeg makes planar RGB in half the time of packed RGB, and trainers want planes.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from itertools import islice

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter
from numpy.typing import NDArray

from pipeline.errors import ClipError, ErrorCode

PLANAR = "gbrp"
"""FFmpeg's name of planar RGB."""

# Full chroma and exact rounding: without them swscale's fast paths darken a picture by 1 to 2 levels.
_TO_RGB = Interpolation.AREA | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND

# A clip's pictures may take this many times the declared pixels, and this many more. It bounds what a damaged or
# hostile header makes FFmpeg allocate; the shape of each picture is checked once it is decoded. FFmpeg counts pixels
# after rounding sides up, by an amount that depends on the processor: this is far above any of that.
_PIXELS_FACTOR, _EXTRA_PIXELS = 4, 1 << 22

# The first bytes of a PNG, and the most pixels that one may have to be decoded.
_PNG_HEADER, _MAX_PNG_PIXELS = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", 4096 * 4096

Shape = tuple[int, int, int]
"""Frames, height and width."""


def decode_planar(mp4: bytes, shape: Shape, frames: int | None = None) -> NDArray[np.uint8]:
    """A clip made by `encode_clip` as uint8 [3, T, H, W] RGB; with `frames` only that many are decoded.

    Raises ClipError CLIP_DAMAGED if bytes are missing or the shape differs, before anything larger is allocated.
    """
    count = shape[0] if frames is None else min(frames, shape[0])
    clip = np.empty((3, count, *shape[1:]), np.uint8)
    # When all frames are wanted, read to the end, which shows whether any are missing.
    for index, (_, frame) in enumerate(islice(decode_frames(mp4, shape), None if count == shape[0] else count)):
        for channel, plane in zip(clip, planes(frame), strict=True):
            channel[index] = plane
    return clip


def decode_clip(mp4: bytes) -> NDArray[np.uint8]:
    """A clip made by `encode_clip` as uint8 [T, H, W, 3] RGB.

    Raises ClipError CLIP_DAMAGED if bytes are missing.
    """
    clip = np.empty(0, np.uint8)
    for index, (shape, frame) in enumerate(decode_frames(mp4)):
        if not index:
            clip = np.empty((*shape, 3), np.uint8)
        clip[index] = to_packed(frame)
    return clip


def decode_frames(mp4: bytes, expected: Shape | None = None) -> Iterator[tuple[Shape, av.VideoFrame]]:
    """Yields the clip's shape and a frame in planar RGB, for every frame of a clip made by `encode_clip`.

    Raises ClipError CLIP_DAMAGED if bytes are missing, are not H.264, or do not have the `expected` shape.
    """
    scaler = VideoReformatter()
    try:
        with av.open(io.BytesIO(mp4), "r", format="mp4") as container:
            stream = container.streams.video[0]
            codec = stream.codec_context
            # None for a codec that FFmpeg does not know.
            if codec is None or codec.name != "h264":
                raise ValueError(f"it is {codec.name if codec else 'of no known codec'}, not h264")
            shape = stream.frames, stream.height, stream.width
            if expected and shape != expected:
                raise ValueError(f"it is {_describe_shape(shape)}, and should be {_describe_shape(expected)}")
            codec.thread_count = 1
            codec.options = {"max_pixels": str(_PIXELS_FACTOR * shape[1] * shape[2] + _EXTRA_PIXELS)}
            count = 0
            for count, frame in enumerate(container.decode(stream), 1):
                if count > shape[0] or (frame.height, frame.width) != shape[1:]:
                    raise ValueError(
                        f"frame {count} of {frame.width}x{frame.height} is not of {_describe_shape(shape)}"
                    )
                yield (
                    shape,
                    scaler.reformat(
                        frame, format=PLANAR, interpolation=_TO_RGB, dst_color_range=ColorRange.JPEG, threads=1
                    ),
                )
    except (FFmpegError, IndexError, ValueError) as error:
        if isinstance(error, MemoryError):
            raise
        raise ClipError(ErrorCode.CLIP_DAMAGED, f"a clip's mp4 cannot be read: {error}") from error
    if count != shape[0] or not count:
        raise ClipError(ErrorCode.CLIP_DAMAGED, f"a clip's mp4 holds {count} of {shape[0]} frames")


def planes(frame: av.VideoFrame) -> tuple[NDArray[np.uint8], ...]:
    """The red, green and blue planes of a frame in planar RGB, then alpha if it has it: views, uint8 [H, W]."""
    green, blue, red, *alpha = (
        np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]
        for plane in frame.planes
    )
    return red, green, blue, *alpha


def to_packed(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """A frame in planar RGB, without its alpha, as the packed uint8 [H, W, 3] array that annotators and filters use."""
    picture = np.empty((frame.height, frame.width, 3), np.uint8)
    for channel, plane in enumerate(planes(frame)[:3]):
        picture[..., channel] = plane
    return picture


def decode_png(png: bytes) -> NDArray[np.uint8]:
    """A picture made by `encode_png` as uint8 [H, W, 3] RGB.

    Raises ClipError CLIP_DAMAGED if bytes are missing, or claim more pixels than a reference can have.
    """
    try:
        if png[:16] != _PNG_HEADER:
            raise ValueError("it is not a PNG")
        width, height = struct.unpack(">II", png[16:24])
        if width * height > _MAX_PNG_PIXELS:
            raise ValueError(f"it has {width}x{height} pixels")
        (frame,) = av.CodecContext.create("png", "r").decode(av.Packet(png))
    except (FFmpegError, ValueError, struct.error) as error:
        raise ClipError(ErrorCode.CLIP_DAMAGED, f"a clip's picture cannot be read: {error}") from error
    return np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)


def _describe_shape(shape: Shape) -> str:
    frames, height, width = shape
    return f"{frames} frames of {width}x{height}"
