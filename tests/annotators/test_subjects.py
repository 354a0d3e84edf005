"""Masks must lie on the subject, in every frame and steadily, and references must show it alone."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import real_clips

from annotators.subjects import Subjects


@pytest.fixture(scope="module")
def subjects() -> Subjects:
    return real_clips.loaded(Subjects)


def overlap(one: Any, other: Any) -> float:
    return float(np.count_nonzero(one & other) / np.count_nonzero(one | other))


def composited(behind: str, front: str, box: tuple[int, int, int, int], count: int = 25) -> tuple[Any, Any]:
    """A round piece of one real clip moving over another: frames and the true mask, bool [T, H, W]."""
    frames = real_clips.frames(behind, count, width=480, height=272)
    left, top, right, bottom = box
    piece = real_clips.frames(front, 1, width=480, height=272)[0][top:bottom, left:right]
    height, width = piece.shape[:2]
    shape = np.zeros((height, width), np.uint8)
    cv2.ellipse(shape, (width // 2, height // 2), (width // 2 - 2, height // 2 - 2), 0, 0, 360, 1, -1)
    truth = np.zeros(frames.shape[:3], bool)
    for number in range(count):
        x, y = 60 + 6 * number, 80 + number
        place = np.s_[y : y + height, x : x + width]
        truth[number][place] = shape.astype(bool)
        frames[number][place][shape > 0] = piece[shape > 0]
    return frames, truth


@pytest.mark.parametrize(
    ("behind", "front", "box"),
    [
        ("data-juicer__video11.mp4", "VACE__test2.mp4", (150, 60, 300, 200)),
        ("FastGen__04_bird_flying_church_tower_clock.mp4", "learning-area__frog.webm", (160, 60, 320, 200)),
        ("DVR-Scan__traffic_camera.mp4", "VACE__test.mp4", (120, 60, 260, 200)),
    ],
)
def test_the_mask_lies_on_a_composited_subject(subjects: Subjects, behind: str, front: str, box: Any) -> None:
    frames, truth = composited(behind, front, box)
    found = subjects(frames, 16.0, pose_coverage=0.0)
    masks = found.tracks["mask"]
    assert masks.shape == frames.shape
    assert set(np.unique(masks)) == {0, 255}
    each = [overlap(mask[..., 0] > 0, one) for mask, one in zip(masks, truth, strict=True)]
    assert np.mean(each) > 0.8
    assert found.signals["subject"] == "object"
    assert found.signals["subject_area"] == pytest.approx(truth.mean(), rel=0.3)
