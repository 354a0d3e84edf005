"""Tests that a mask warped by the flow follows the picture."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from annotators.motion.propagation import FlowWarper


def texture(height: int = 120, width: int = 200) -> np.ndarray:
    noise = np.random.default_rng(2).integers(0, 256, (height, width, 3)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def test_a_map_warped_to_its_own_frame_is_unchanged() -> None:
    frames = [texture()] * 2
    mark = np.random.default_rng(1).random(frames[0].shape[:2], np.float32)
    for k in (0, 1):
        assert not FlowWarper(frames).displacement(k, k).any()
        assert np.array_equal(FlowWarper(frames).warp(mark, k, k), mark)


@pytest.mark.parametrize(("source", "target"), [(0, 6), (6, 0), (2, 5), (3, 3)])
def test_a_mark_moves_with_the_picture(source: int, target: int) -> None:
    picture = texture()
    frames = [np.roll(picture, (k, 3 * k), axis=(0, 1)) for k in range(7)]
    mark = np.zeros(picture.shape[:2], np.float32)
    mark[50:70, 80:110] = 1
    warped = FlowWarper(frames).warp(np.roll(mark, (source, 3 * source), axis=(0, 1)), source, target)
    truth = np.roll(mark, (target, 3 * target), axis=(0, 1)) > 0.5
    warped_mask = warped > 0.5
    assert (truth & warped_mask).sum() / (truth | warped_mask).sum() > 0.9
