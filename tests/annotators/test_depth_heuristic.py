"""Tests that the depth heuristic follows its rules (low, clear, fast and standing low are near), without flicker."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import real_clips

from annotators.base import Frames
from annotators.depth_heuristic import DepthHeuristic


def measure_depth(frames: Frames, mask: Frames | None = None) -> Frames:
    annotation = DepthHeuristic()(frames, 16.0, mask=np.zeros_like(frames) if mask is None else mask)
    assert annotation.signals == {"depth_method": "heuristic"}
    track = annotation.tracks["depth"]
    assert track.shape == frames.shape
    assert (track[..., 0] == track[..., 1]).all()
    return track


def texture(height: int = 144, width: int = 256) -> np.ndarray:
    noise = np.random.default_rng(1).integers(0, 256, (height, width, 3)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def test_what_is_lower_is_nearer() -> None:
    track = measure_depth(np.stack([texture()] * 9)).astype(float)
    assert track[:, -20:].mean() - track[:, :20].mean() > 120


def test_of_what_a_camera_passes_the_faster_is_nearer() -> None:
    far, near = texture(), texture()[::-1].copy()
    frames = []
    for number in range(9):
        frame = np.roll(far, -2 * number, axis=1)
        frame[52:92] = np.roll(near, -8 * number, axis=1)[52:92]
        frames.append(frame)
    track = measure_depth(np.stack(frames)).astype(float)
    still = measure_depth(np.stack([far] * 9)).astype(float)
    lift = track[:, 60:84].mean() - track[:, 100:124].mean()
    assert lift > still[:, 60:84].mean() - still[:, 100:124].mean() + 20


def test_a_subject_is_as_near_as_the_ground_under_it() -> None:
    frames = np.stack([texture()] * 9)
    mask = np.zeros_like(frames)
    mask[:, 20:120, 100:150] = 255
    track = measure_depth(frames, mask).astype(float)
    body, ground = track[:, 40:60, 115:135].mean(), track[:, 118:122].mean()
    assert abs(body - ground) < 40
    assert body - track[:, 40:60, 10:40].mean() > 60


def test_it_does_not_flicker() -> None:
    track = measure_depth(real_clips.frames("psychopy__intro.mp4", 17, width=416, height=240)).astype(float)
    assert np.abs(np.diff(track, axis=0)).mean() < 4


def test_one_frame_and_one_colour_are_taken() -> None:
    assert measure_depth(np.full((1, 32, 48, 3), 90, np.uint8)).shape == (1, 32, 48, 3)


@pytest.mark.parametrize("size", [(176, 2256), (2256, 176), (16, 640), (8, 8), (1, 64)])
def test_wide_and_tall_and_tiny_clips_are_taken(size: tuple[int, int]) -> None:
    frames = np.random.default_rng(3).integers(0, 256, (3, *size, 3), np.uint8)
    assert measure_depth(frames).shape == frames.shape


def test_one_subject_does_not_move_another() -> None:
    frames = np.stack([texture()] * 9)
    single_mask, pair_mask = np.zeros_like(frames), np.zeros_like(frames)
    single_mask[:, 20:70, 180:210] = 255
    pair_mask[:, 20:70, 180:210] = 255
    pair_mask[:, 30:130, 40:90] = 255
    alone_depth, pair_depth = (
        measure_depth(frames, mask)[:, 30:60, 188:202].astype(float).mean() for mask in (single_mask, pair_mask)
    )
    assert abs(alone_depth - pair_depth) < 12
