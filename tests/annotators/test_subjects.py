"""Tests that masks cover the subject steadily in every frame, and that references show it alone."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import pytest
import real_clips

from annotators.subjects import Subjects


@pytest.fixture(scope="module")
def subjects() -> Subjects:
    return real_clips.load(Subjects)


def overlap(first: Any, second: Any) -> float:
    return float(np.count_nonzero(first & second) / np.count_nonzero(first | second))


def composite(background: str, foreground: str, box: tuple[int, int, int, int], count: int = 25) -> tuple[Any, Any]:
    """A round piece of one real clip moving over another: frames and the true mask, bool [T, H, W]."""
    frames = real_clips.frames(background, count, width=480, height=272)
    left, top, right, bottom = box
    piece = real_clips.frames(foreground, 1, width=480, height=272)[0][top:bottom, left:right]
    height, width = piece.shape[:2]
    shape = np.zeros((height, width), np.uint8)
    cv2.ellipse(shape, (width // 2, height // 2), (width // 2 - 2, height // 2 - 2), 0, 0, 360, 1, -1)
    truth = np.zeros(frames.shape[:3], bool)
    for number in range(count):
        x, y = 60 + 6 * number, 80 + number
        target = np.s_[y : y + height, x : x + width]
        truth[number][target] = shape.astype(bool)
        frames[number][target][shape > 0] = piece[shape > 0]
    return frames, truth


@pytest.mark.long
@pytest.mark.parametrize(
    ("background", "foreground", "box"),
    [
        ("data-juicer__video11.mp4", "VACE__test2.mp4", (150, 60, 300, 200)),
        ("FastGen__04_bird_flying_church_tower_clock.mp4", "learning-area__frog.webm", (160, 60, 320, 200)),
        ("DVR-Scan__traffic_camera.mp4", "VACE__test.mp4", (120, 60, 260, 200)),
    ],
)
def test_the_mask_lies_on_a_composited_subject(subjects: Subjects, background: str, foreground: str, box: Any) -> None:
    frames, truth = composite(background, foreground, box)
    annotation = subjects(frames, 16.0, pose_coverage=0.0)
    masks = annotation.tracks["mask"]
    assert masks.shape == frames.shape
    assert set(np.unique(masks)) == {0, 255}
    overlaps = [overlap(mask[..., 0] > 0, truth_mask) for mask, truth_mask in zip(masks, truth, strict=True)]
    assert np.mean(overlaps) > 0.8
    assert annotation.signals["subject"] == "object"
    assert annotation.signals["subject_area"] == pytest.approx(truth.mean(), rel=0.3)


@pytest.mark.long
@pytest.mark.parametrize("name", ["VACE__test.mp4", "learning-area__pig.webm"])
def test_warped_masks_are_as_good_as_those_of_the_network(subjects: Subjects, name: str) -> None:
    frames = real_clips.frames(name, 17, width=480, height=272)
    warped = subjects(frames, 16.0, pose_coverage=0.0).tracks["mask"][..., 0] > 0
    # A clip of one frame is segmented directly, without warping.
    direct = [subjects(frames[k : k + 1], 16.0, pose_coverage=0.0).tracks["mask"][0, ..., 0] > 0 for k in range(2, 7)]
    from_frame_to_frame = np.mean([overlap(before, after) for before, after in pairwise(direct)])
    agreement = np.mean([overlap(warped[k], direct[k - 2]) for k in range(2, 7)])
    assert agreement > from_frame_to_frame - 0.05
    assert np.mean([overlap(before, after) for before, after in pairwise(warped[2:7])]) > from_frame_to_frame - 0.03


def test_references_show_the_subject_alone_on_white(subjects: Subjects) -> None:
    frames, _ = composite("data-juicer__video11.mp4", "VACE__test2.mp4", (150, 60, 300, 200))
    (reference,) = subjects(frames, 16.0, pose_coverage=0.0).pictures["ref"]
    assert reference.dtype == np.uint8
    assert min(reference.shape[:2]) > 120
    assert max(reference.shape[:2]) < 190
    corners = [reference[y, x] for y in (0, -1) for x in (0, -1)]
    assert (np.array(corners) == 255).all()
    white = (reference == 255).all(axis=-1).mean()
    assert 0.15 < white < 0.6, "an ellipse fills 79 % of its box"


def test_without_a_subject_there_is_none(subjects: Subjects) -> None:
    annotation = subjects(np.full((9, 96, 128, 3), 90, np.uint8), 16.0, pose_coverage=0.0)
    assert not annotation.tracks["mask"].any()
    assert annotation.pictures["ref"] == []
    assert annotation.signals == {
        "subject": None, "subjects": 0, "subject_coverage": 0.0, "subject_area": 0.0, "subject_x": None,
        "subject_y": None, "subject_stability": None, "ref_pictures": 0,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["AugLy__small_input_1.mp4", "psychopy__talk.mp4"])
def test_people_are_the_subject_where_pose_saw_them(subjects: Subjects, name: str) -> None:
    frames = real_clips.frames(name, 9, width=480, height=272)
    annotation = subjects(frames, 16.0, pose_coverage=1.0)
    assert annotation.signals["subject"] == "person"
    assert annotation.signals["subject_coverage"] == 1.0
    left, top, right, bottom = annotation.data["subjects"][0][0]
    mask = annotation.tracks["mask"][0, ..., 0] > 0
    assert mask[top:bottom, left:right].sum() == pytest.approx(mask.sum(), rel=0.2)
