"""Encodes clips as small H.264 files: any reader returns every frame, and the bytes are the same in every run."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.codec.context import Flags
from av.packet import Packet
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

# AVCOL_SPC_SMPTE170M, i.e. BT.601: the matrix that readers assume if none is given, so that readers which ignore
# the tag (OpenCV) and readers which follow it agree.
_BT601 = 6
# Full chroma and exact rounding: without them swscale's fast paths darken a picture by 1 to 2 levels.
_TO_YUV = Interpolation.AREA | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND


def encode_clip(frames: NDArray[np.uint8], fps: float, crf: float = 18, preset: str = "veryfast") -> bytes:
    """uint8 [T, H, W, 3] RGB as an mp4 of H.264 4:2:0 at `fps` frames a second; H and W must be even.

    One thread, because x264's bytes depend on the thread count. No B-frames, so that pts equal dts and there
    is no edit list, which some readers get wrong. The index comes first (faststart), and nothing in the file
    contains a date or a version. `crf` and `preset` are x264's; 18 is commonly taken as visually lossless.
    """
    buffer = io.BytesIO()
    with av.open(
        buffer,
        "w",
        format="mp4",
        options={"movflags": "+faststart", "fflags": "+bitexact"},
        # to move the index to the front the muxer reads back what it has written
        io_open=lambda url, flags, options: io.BytesIO(buffer.getvalue()),
    ) as container:
        # x264's macroblock tree reads memory that it has not written (seen with one thread): the bytes vary.
        options = {"crf": str(crf), "preset": preset, "bf": "0", "threads": "1", "mbtree": "0"}
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        codec = stream.codec_context
        codec.thread_count = 1
        codec.flags |= Flags.bitexact
        codec.colorspace = _BT601
        codec.color_range = ColorRange.MPEG
        # x264 writes its version and settings into an SEI message (NAL unit type 6), bitexact or not
        sei_filter = BitStreamFilterContext("filter_units=remove_types=6", in_stream=stream)
        for picture in _convert_to_yuv(frames):
            container.mux(_filter_packets(sei_filter, stream.encode(picture)))
        container.mux(_filter_packets(sei_filter, stream.encode(None)))
    return buffer.getvalue()


def encode_png(picture: NDArray[np.uint8]) -> bytes:
    """uint8 [H, W, 3] RGB as a PNG."""
    encoder = av.CodecContext.create("png", "w")
    encoder.height, encoder.width = picture.shape[:2]
    encoder.pix_fmt, encoder.time_base, encoder.thread_count = "rgb24", Fraction(1), 1
    packets = [*encoder.encode(av.VideoFrame.from_ndarray(picture, "rgb24")), *encoder.encode(None)]
    return b"".join(bytes(packet) for packet in packets)


def _convert_to_yuv(frames: NDArray[np.uint8]) -> Iterator[av.VideoFrame]:
    scaler = VideoReformatter()
    for index, picture in enumerate(frames):
        frame = scaler.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU601,
            dst_color_range=ColorRange.MPEG,
            interpolation=_TO_YUV,
            threads=1,
        )
        frame.pts = index
        yield frame


def _filter_packets(
    bitstream_filter: BitStreamFilterContext, packets: Iterable[Packet[VideoStream]]
) -> list[Packet[VideoStream]]:
    return [filtered for packet in packets for filtered in bitstream_filter.filter(packet)]
