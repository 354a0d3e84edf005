"""Finds people and draws their skeletons, the control signal most in demand, as most videos are about people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from annotators import weights
from annotators.base import Annotation, Annotator, Frames, Signal, Weight
from annotators.pose.drawing import KEYPOINTS, draw_people
from annotators.pose.networks import Body, Detector, Landmarker, Roi
from annotators.pose.smoothing import Floats, measure_trembling, smooth

_MEDIAPIPE = "pypi:mediapipe==0.10.21!mediapipe/modules"

# BlazePose's landmark for each of OpenPose's 18 keypoints. It has no neck: the entry there is a place holder.
_LANDMARK_OF = (0, 0, 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7)
_NECK = KEYPOINTS.index("neck")
_SHOULDERS = [KEYPOINTS.index("right_shoulder"), KEYPOINTS.index("left_shoulder")]

# The detector looks at every fourth frame; in between, a person is looked for where the landmarks of the
# frame before put them. Measured: a third less work, and better, because a square that follows a body moves
# less than one detected again; the landmarks are surer of people, and less sure of what only looks like one.
_DETECT_EVERY = 4
# A person is followed from a detection this sure,
_START_SCORE = 0.5
# for as long as the detector stays this sure (MediaPipe's min_score_thresh)
_KEEP_SCORE = 0.2
# and the landmarks stay this sure that there is a person (MediaPipe's threshold on the pose flag).
_KEEP_FLAG = 0.5
# A track is a person if this sure on average, and seen in this many frames. Measured: tracks of anything else
# (hands, a bird, a drawn rabbit) stay below 0.8, or are lost within eight frames.
_PERSON_SCORE = 0.8
_PERSON_FRAMES = 8
# Squares that overlap by this much are the same person: a detection and a track, and two tracks.
_SAME_AS_DETECTED = 0.4
_SAME_AS_TRACKED = 0.8


class Pose(Annotator):
    """Draws the skeletons of all people in a clip (track `pose`) and keeps their keypoints (data `pose`).

    data["pose"]: for each frame a list of people, each a list of 18 [x, y, confidence] in the order of
    `drawing.KEYPOINTS`; x and y in pixels, rounded to 0.1 (they may lie outside the frame); the
    confidence, 0 to 1, that the point is in the frame and visible, rounded to 0.01. In every frame, the
    person who was found first comes first. The points are smoothed in time (`smoothing`).
    """

    name: ClassVar[str] = "pose"
    version: ClassVar[str] = "blazepose-full-2"
    tracks: ClassVar[tuple[str, ...]] = ("pose",)
    signals: ClassVar[Mapping[str, Signal]] = {
        "pose_people": Signal("count", "The most people seen at once in any frame.", "int"),
        "pose_coverage": Signal("0..1", "Share of the frames in which at least one person is seen."),
        "pose_score": Signal(
            "0..1", "How surely the surest person in a frame is one: mean over the frames with people."
        ),
        "pose_jitter": Signal(
            "%", "How far the drawn points, smoothed, still jump off their course, of the body's size: median; or null."
        ),
    }
    weights: ClassVar[tuple[Weight, ...]] = (
        Weight(
            id="mediapipe-pose-detection",
            source=f"{_MEDIAPIPE}/pose_detection/pose_detection.tflite",
            sha256="9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c",
            licence="Apache-2.0",
        ),
        Weight(
            id="mediapipe-pose-landmark-full",
            source=f"{_MEDIAPIPE}/pose_landmark/pose_landmark_full.tflite",
            sha256="e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
            licence="Apache-2.0",
        ),
    )

    def __init__(self) -> None:
        """Load both networks; raises `weights.MissingWeights` if one is absent or damaged."""
        detector, landmarker = (weights.path(weight) for weight in self.weights)
        self._detector = Detector(detector)
        self._landmarker = Landmarker(landmarker)

    def __call__(self, frames: Frames, fps: float) -> Annotation:
        """Find the people in one clip: `frames` uint8 [T, H, W, 3] RGB, of any size; `fps` is not used."""
        tracks = self._follow_people(frames)
        pictures = np.zeros_like(frames)
        keypoints: list[list[list[list[float]]]] = []
        best_scores: list[float] = []
        for k, picture in enumerate(pictures):
            visible = [track for track in tracks if k in track.bodies]
            keypoints.append([_to_openpose(track.bodies[k]) for track in visible])
            # Drawn from the rounded keypoints, so that the same track can be drawn from the data alone.
            draw_people(picture, np.array(keypoints[-1], np.float32).reshape(-1, 18, 3))
            if visible:
                best_scores.append(max(track.scores[k] for track in visible))
        return Annotation(
            tracks={"pose": pictures},
            signals={
                "pose_people": max((len(people) for people in keypoints), default=0),
                "pose_coverage": len(best_scores) / len(frames),
                "pose_score": float(np.mean(best_scores)) if best_scores else None,
                "pose_jitter": _measure_jitter(tracks),
            },
            data={"pose": keypoints},
        )

    def _follow_people(self, frames: Frames) -> list[_Track]:
        """Follow every person in the clip; returns them in the order in which they were found."""
        tracks: list[_Track] = []
        live: list[_Track] = []
        for k, frame in enumerate(frames):
            new_tracks: list[_Track] = []
            if k % _DETECT_EVERY == 0:
                live, new_tracks = _match_detections(live, self._detector(frame, _KEEP_SCORE))
            live = _drop_doubles(track for track in live if track.look(self._landmarker, frame, k))
            for track in new_tracks:
                if self._start_track(track, frames, k, tracks):
                    tracks.append(track)
                    live.append(track)
        people = [track for track in tracks if track.score >= _PERSON_SCORE and len(track.bodies) >= _PERSON_FRAMES]
        for person in people:
            person.smooth_points()
        return people

    def _start_track(self, track: _Track, frames: Frames, k: int, followed: list[_Track]) -> bool:
        """Start a track in frame `k`, and follow it back through the frames that the detector skipped."""
        for earlier in range(k, max(k - _DETECT_EVERY, -1), -1):
            visible = track.look(self._landmarker, frames[earlier], earlier)
            if not visible:
                break
            if any(_same_person(track, older, earlier) for older in followed):
                track.forget(earlier)
                break
        if k not in track.bodies:
            return False
        track.roi = track.bodies[k].roi
        return True


@dataclass(slots=True, eq=False)
class _Track:
    """One person followed through the clip: a body and a score for each frame in which they are seen."""

    detector_score: float
    roi: Roi
    bodies: dict[int, Body] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)

    def look(self, landmarker: Landmarker, frame: NDArray[np.uint8], k: int) -> bool:
        """Look for the person in `frame`, number `k` of the clip; False if they are gone."""
        body = landmarker(frame, self.roi)
        if body.flag < _KEEP_FLAG:
            return False
        self.roi = body.roi
        self.bodies[k] = body
        self.scores[k] = min(self.detector_score, body.flag)
        return True

    def forget(self, k: int) -> None:
        """Remove frame number `k` from the track."""
        del self.bodies[k], self.scores[k]

    def points(self) -> Floats:
        """The points of its consecutive frames: float32 [n, 33, 3]."""
        return np.stack([self.bodies[k].points for k in sorted(self.bodies)])

    def smooth_points(self) -> None:
        """Smooth the points in time."""
        for k, points in zip(sorted(self.bodies), smooth(self.points()), strict=True):
            self.bodies[k] = replace(self.bodies[k], points=points)

    @property
    def score(self) -> float:
        """How surely this is a person: the mean over its frames of min(detector, landmark flag), 0 to 1."""
        return float(np.mean(list(self.scores.values())))


def _match_detections(live: list[_Track], detections: list[tuple[float, Roi]]) -> tuple[list[_Track], list[_Track]]:
    """Match detections to tracks: the confirmed tracks, with their new score, and a new track for each new person."""
    confirmed: list[_Track] = []
    new_tracks: list[_Track] = []
    unmatched = list(live)
    for score, roi in detections:
        nearest = max(unmatched, key=lambda track: roi.overlap(track.roi), default=None)
        if nearest is not None and roi.overlap(nearest.roi) > _SAME_AS_DETECTED:
            unmatched.remove(nearest)
            nearest.detector_score = score
            confirmed.append(nearest)
        elif score >= _START_SCORE:
            new_tracks.append(_Track(score, roi))
    # In the order of `live`, so that the older of two doubles stays.
    return [track for track in live if track in confirmed], new_tracks


def _drop_doubles(tracks: Iterable[_Track]) -> list[_Track]:
    """Drop tracks that have slipped onto a person whom an older track follows."""
    unique: list[_Track] = []
    for track in tracks:
        if all(track.roi.overlap(older.roi) <= _SAME_AS_TRACKED for older in unique):
            unique.append(track)
    return unique


def _same_person(track: _Track, older: _Track, k: int) -> bool:
    return k in older.bodies and track.bodies[k].roi.overlap(older.bodies[k].roi) > _SAME_AS_TRACKED


def _measure_jitter(people: list[_Track]) -> float | None:
    """Measure the median trembling, in per cent of each person's size."""
    deviations = [
        measure_trembling(person.points()[:, _LANDMARK_OF])
        / np.median([body.roi.side for body in person.bodies.values()])
        for person in people
    ]
    relative = np.concatenate(deviations) if deviations else np.zeros(0)
    return float(100 * np.median(relative)) if len(relative) else None


def _to_openpose(body: Body) -> list[list[float]]:
    """The 18 OpenPose keypoints [x, y, confidence] of a body; the neck is half way between the shoulders."""
    points = body.points[_LANDMARK_OF, :]
    shoulders = points[_SHOULDERS]
    points[_NECK, :2] = shoulders[:, :2].mean(axis=0)
    points[_NECK, 2] = shoulders[:, 2].min()
    return [[round(x, 1), round(y, 1), round(confidence, 2)] for x, y, confidence in points.tolist()]
