"""Puts a clip and its tracks side by side into one small video, so that they cannot get out of step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from annotators.base import Frames
from pipeline.errors import ClipError
from pipeline.formats.clip_decode import decode_clip
from pipeline.formats.clip_encode import encode_clip

# Longer side of one tile, in pixels, and how many tiles lie in a row.
_TILE, _ACROSS = 224, 3
# Small files matter more than detail here: x264's and JPEG's quality.
_CRF, _QUANTIZER = 30, 5


@dataclass(frozen=True, slots=True)
class Mosaic:
    """A clip and its tracks as one video (MP4), its middle frame (JPEG), and the names of the tiles, row by row."""

    film: bytes
    poster: bytes
    tiles: list[str]


def make_mosaic(members: Mapping[str, bytes], fps: float) -> Mosaic | None:
    """Put the clip and the tracks of a sample (`members` as from `shards.read_sample`) into one video; None where the
    clip cannot be read. A track that cannot be read is left out."""
    names = ["mp4", *sorted(name for name in members if name.endswith(".mp4"))]
    tiles: dict[str, Frames] = {}
    for name in names:
        try:
            frames = decode_clip(members[name])
        except (KeyError, ClipError):
            continue
        tiles[name.removesuffix(".mp4") if name != "mp4" else "clip"] = _shrink(frames)
    if "clip" not in tiles:
        return None
    length, height, width, _ = tiles["clip"].shape
    tracks = [name for name, frames in tiles.items() if len(frames) == length]
    rows = -(-len(tracks) // _ACROSS)
    across = min(len(tracks), _ACROSS)
    picture = np.zeros((length, rows * height, across * width, 3), np.uint8)
    for position, name in enumerate(tracks):
        start_y, start_x = position // _ACROSS * height, position % _ACROSS * width
        picture[:, start_y : start_y + height, start_x : start_x + width] = tiles[name]
    return Mosaic(encode_clip(picture, fps, _CRF), _encode_jpeg(picture[length // 2]), tracks)


def _encode_jpeg(picture: NDArray[np.uint8]) -> bytes:
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.height, encoder.width = picture.shape[:2]
    encoder.pix_fmt, encoder.time_base, encoder.thread_count = "yuvj420p", Fraction(1), 1
    encoder.qmin = encoder.qmax = _QUANTIZER
    frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuvj420p")
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


def _shrink(frames: Frames) -> Frames:
    height, width = frames.shape[1:3]
    scale = min(1.0, _TILE / max(height, width))
    small_width, small_height = (max(2, round(side * scale / 2) * 2) for side in (width, height))
    # One for all frames: its setup for a size serves every frame.
    scaler = VideoReformatter()
    small = np.empty((len(frames), small_height, small_width, 3), np.uint8)
    for frame, picture in zip(frames, small, strict=True):
        scaled = scaler.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24"),
            small_width,
            small_height,
            interpolation=Interpolation.AREA,
        )
        picture[:] = scaled.to_ndarray()
    return small
