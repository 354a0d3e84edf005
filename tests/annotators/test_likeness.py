"""Tests that copies of a clip have nearly its vector, and that other clips do not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import real_clips
import small_videos

from annotators.base import Frames
from annotators.networks.picture_embedding import SIZE, ClipEmbedding
from pipeline.formats.clip_decode import decode_clip
from pipeline.formats.clip_encode import encode_clip


@pytest.fixture(scope="module")
def likeness() -> ClipEmbedding:
    return real_clips.load(ClipEmbedding)


def cosine(likeness: ClipEmbedding, first: Frames, second: Frames) -> float:
    return float(likeness(first) @ likeness(second))


def make_copies(frames: Frames) -> dict[str, Frames]:
    height, width = frames.shape[1] // 20 * 2, frames.shape[2] // 20 * 2
    return {
        "re-encoded": decode_clip(encode_clip(frames, 16.0, 34)),
        "cropped": np.ascontiguousarray(frames[:, height // 2 : -height // 2, width // 2 : -width // 2]),
        "mirrored": np.ascontiguousarray(frames[:, :, ::-1]),
        "half the size": np.stack([cv2.resize(frame, None, fx=0.5, fy=0.5) for frame in frames]),
    }


def test_a_unit_vector_of_any_clip(likeness: ClipEmbedding) -> None:
    for shape in ((1, 16, 16, 3), (9, 96, 32, 3)):
        vector = likeness(np.zeros(shape, np.uint8))
        assert vector.shape == (SIZE,)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


@pytest.mark.long
def test_made_up_clips(likeness: ClipEmbedding) -> None:
    clip = small_videos.frames(1, 1, 17, (60, 90, 160))
    for name, copy in make_copies(clip).items():
        assert cosine(likeness, clip, copy) > 0.9, name
    assert cosine(likeness, clip, small_videos.frames(2, 1, 17, (200, 190, 80))) < 0.7


@pytest.mark.long
def test_real_clips(likeness: ClipEmbedding) -> None:
    juggle = real_clips.frames("sam2__05_default_juggle.mp4", 33, every=2, width=640, height=360)
    for kind, copy in make_copies(juggle).items():
        assert cosine(likeness, juggle, copy) > 0.92, kind
    for name in ("sam2__01_dog.mp4", "FastGen__00_child_swings_rusty_swing_set.mp4"):
        frames = real_clips.frames(name, 33, every=2, width=640, height=360)
        assert cosine(likeness, juggle, frames) < 0.78, name
