"""Tests that smoothing removes trembling from a body's points without delaying or shortening its motion."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotators.pose.smoothing import measure_trembling, smooth


def make_course(frames: int, acceleration: float = 0.0, speed: float = 3.0) -> np.ndarray:
    time = np.arange(frames, dtype=np.float32)
    x = 100 + speed * time + acceleration / 2 * time**2
    return np.stack([np.stack([x, 200 - x / 2, np.full(frames, 0.9, np.float32)], axis=1)] * 3, axis=1)


@given(st.integers(1, 30), st.floats(-2, 2), st.floats(-9, 9))
def test_steady_motion_and_steady_acceleration_stay_as_they_are(frames: int, acceleration: float, speed: float) -> None:
    points = make_course(frames, acceleration, speed)
    assert np.allclose(smooth(points), points, atol=0.05)


def test_noise_becomes_less_and_a_gesture_is_neither_late_nor_smaller() -> None:
    rng = np.random.default_rng(3)
    time = np.arange(64)
    wave = 40 * np.sin(2 * np.pi * time / 16)  # once a second at 16 fps
    clean = make_course(64)
    clean[:, :, 0] += wave[:, None]
    noisy = clean.copy()
    noisy[:, :, :2] += rng.normal(0, 2, noisy[:, :, :2].shape)
    smoothed = smooth(noisy)
    assert np.abs(smoothed - clean)[..., :2].mean() < 0.8 * np.abs(noisy - clean)[..., :2].mean()
    straight = make_course(64)
    shaky = straight + np.pad(rng.normal(0, 2, (64, 3, 2)), ((0, 0), (0, 0), (0, 1))).astype(np.float32)
    assert np.median(measure_trembling(smooth(shaky))) < 0.5 * np.median(measure_trembling(shaky))
    # The best agreement with the clean wave is without delay, and the amplitude is preserved.
    motion, truth = smoothed[:, 0, 0] - clean[:, 0, 0] + wave, wave
    lags = [np.dot(np.roll(motion, -lag)[8:-8], truth[8:-8]) for lag in range(-3, 4)]
    assert int(np.argmax(lags)) == 3
    assert np.dot(motion, truth) / np.dot(truth, truth) == pytest.approx(1, abs=0.05)


def test_a_point_that_is_not_seen_does_not_pull_at_the_others() -> None:
    points = make_course(15)
    points[7, 0] = (900.0, 0.0, 0.0)
    smoothed = smooth(points)
    visible = np.delete(np.arange(15), 7)
    assert np.abs(smoothed[visible, 0, :2] - make_course(15)[visible, 0, :2]).max() < 60
    assert np.array_equal(smoothed[..., 2], points[..., 2]), "confidence is not touched"


def test_trembling_is_none_on_a_straight_course_and_only_of_what_is_seen() -> None:
    points = make_course(9)
    assert measure_trembling(points) == pytest.approx(np.zeros(7 * 3))
    points[4, 1, 2] = 0.1
    assert len(measure_trembling(points)) == 7 * 3 - 3
    assert len(measure_trembling(points[:2])) == 0
