"""A clip and its tracks side by side in one small video, so that they cannot fall out of step."""

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
# Small files count for more than detail here.
_CRF = 30


def mosaic(members: Mapping[str, bytes], fps: float) -> tuple[bytes | None, list[str]]:
    """A sample's clip and tracks as one MP4, and the names of its tiles, row by row; (None, []) where the clip cannot
    be read. `members` as `shards.read_sample` gives them; a track that cannot be read is left out."""
    names = ["mp4", *sorted(name for name in members if name.endswith(".mp4"))]
    tiles: dict[str, Frames] = {}
    for name in names:
        try:
            frames = decode_clip(members[name])
        except (KeyError, ClipError):
            continue
        tiles[name.removesuffix(".mp4") if name != "mp4" else "clip"] = _small(frames)
    if "clip" not in tiles:
        return None, []
    length, height, width, _ = tiles["clip"].shape
    shown = [name for name, frames in tiles.items() if len(frames) == length]
    rows = -(-len(shown) // _ACROSS)
    across = min(len(shown), _ACROSS)
    picture = np.zeros((length, rows * height, across * width, 3), np.uint8)
    for place, name in enumerate(shown):
        top, left = place // _ACROSS * height, place % _ACROSS * width
        picture[:, top : top + height, left : left + width] = tiles[name]
    return encode_clip(picture, fps, _CRF), shown


def _small(frames: Frames) -> Frames:
    height, width = frames.shape[1:3]
    scale = min(1.0, _TILE / max(height, width))
    wide, high = (max(2, round(side * scale / 2) * 2) for side in (width, height))
    # One for all frames: what it sets up for a size serves every frame.
    scaler = VideoReformatter()
    small = np.empty((len(frames), high, wide, 3), np.uint8)
    for frame, picture in zip(frames, small, strict=True):
        shrunk = scaler.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24"),
            wide,
            high,
            interpolation=Interpolation.AREA,
        )
        picture[:] = shrunk.to_ndarray()
    return small
