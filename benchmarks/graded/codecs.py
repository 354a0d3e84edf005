"""Encodes and decodes pictures with a real codec at a fixed quantizer."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np

from annotators.base import Frames
from pipeline.formats import clip_encode


def x264(frames: Frames, crf: float, preset: str = "medium") -> Frames:
    """H.264 as usual: with B-frames and the deblocking filter."""
    return _encode_and_decode(frames, "libx264", {"crf": str(crf), "preset": preset})


def mpeg4(frames: Frames, quantizer: int) -> Frames:
    """MPEG-4 part 2 (Xvid, DivX, old phones), which does not smooth block edges; quantizer 1 to 31."""
    return _encode_and_decode(frames, "mpeg4", {"qmin": str(quantizer), "qmax": str(quantizer), "g": "48"})


def _encode_and_decode(frames: Frames, codec: str, options: dict[str, str]) -> Frames:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream(codec, rate=Fraction(25), options=options | {"threads": "1"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for picture in clip_encode._convert_to_yuv(frames):
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    buffer.seek(0)
    with av.open(buffer) as container:
        coded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(coded)
