"""Puts a clip and its tracks side by side into one small video, so that they cannot get out of step."""

from __future__ import annotations

from collections.abc import Mapping

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from annotators.base import Frames
from pipeline.errors import ClipError
from pipeline.formats.clip_decode import decode_clip
from pipeline.formats.clip_encode import encode_clip

# Longer side of one tile, in pixels, and how many tiles lie in a row.
_TILE, _ACROSS = 224, 3
# Small files matter more than detail here.
_CRF = 30


def make_mosaic(members: Mapping[str, bytes], fps: float) -> tuple[bytes | None, list[str]]:
    """Make one MP4 of a sample's clip and tracks; returns it and the names of its tiles, row by row, or (None, [])
    where the clip cannot be read. `members` as from `shards.read_sample`; a track that cannot be read is left out."""
    names = ["mp4", *sorted(name for name in members if name.endswith(".mp4"))]
    tiles: dict[str, Frames] = {}
    for name in names:
        try:
            frames = decode_clip(members[name])
        except (KeyError, ClipError):
            continue
        tiles[name.removesuffix(".mp4") if name != "mp4" else "clip"] = _shrink(frames)
    if "clip" not in tiles:
        return None, []
    length, height, width, _ = tiles["clip"].shape
    tracks = [name for name, frames in tiles.items() if len(frames) == length]
    rows = -(-len(tracks) // _ACROSS)
    across = min(len(tracks), _ACROSS)
    picture = np.zeros((length, rows * height, across * width, 3), np.uint8)
    for position, name in enumerate(tracks):
        start_y, start_x = position // _ACROSS * height, position % _ACROSS * width
        picture[:, start_y : start_y + height, start_x : start_x + width] = tiles[name]
    return encode_clip(picture, fps, _CRF), tracks


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
