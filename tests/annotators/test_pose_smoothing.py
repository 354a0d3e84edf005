"""Smoothing takes the trembling out of a body's points, and neither delays nor shortens what it does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotators.pose.smoothing import smoothed, trembling


def course(frames: int, acceleration: float = 0.0, speed: float = 3.0) -> np.ndarray:
    time = np.arange(frames, dtype=np.float32)
    x = 100 + speed * time + acceleration / 2 * time**2
    return np.stack([np.stack([x, 200 - x / 2, np.full(frames, 0.9, np.float32)], axis=1)] * 3, axis=1)


@given(st.integers(1, 30), st.floats(-2, 2), st.floats(-9, 9))
def test_steady_motion_and_steady_acceleration_stay_as_they_are(frames: int, acceleration: float, speed: float) -> None:
    points = course(frames, acceleration, speed)
    assert np.allclose(smoothed(points), points, atol=0.05)


def test_noise_becomes_less_and_a_gesture_is_neither_late_nor_smaller() -> None:
    rng = np.random.default_rng(3)
    time = np.arange(64)
    wave = 40 * np.sin(2 * np.pi * time / 16)  # once a second at 16 fps
    clean = course(64)
    clean[:, :, 0] += wave[:, None]
    noisy = clean.copy()
    noisy[:, :, :2] += rng.normal(0, 2, noisy[:, :, :2].shape)
    even = smoothed(noisy)
    assert np.abs(even - clean)[..., :2].mean() < 0.8 * np.abs(noisy - clean)[..., :2].mean()
    steady = course(64)
    shaken = steady + np.pad(rng.normal(0, 2, (64, 3, 2)), ((0, 0), (0, 0), (0, 1))).astype(np.float32)
    assert np.median(trembling(smoothed(shaken))) < 0.5 * np.median(trembling(shaken))
    # The best agreement with the clean wave is at no delay, and its height is kept.
    moved, truth = even[:, 0, 0] - clean[:, 0, 0] + wave, wave
    lags = [np.dot(np.roll(moved, -lag)[8:-8], truth[8:-8]) for lag in range(-3, 4)]
    assert int(np.argmax(lags)) == 3
    assert np.dot(moved, truth) / np.dot(truth, truth) == pytest.approx(1, abs=0.05)


def test_a_point_that_is_not_seen_does_not_pull_at_the_others() -> None:
    points = course(15)
    points[7, 0] = (900.0, 0.0, 0.0)
    even = smoothed(points)
    seen = np.delete(np.arange(15), 7)
    assert np.abs(even[seen, 0, :2] - course(15)[seen, 0, :2]).max() < 60
    assert np.array_equal(even[..., 2], points[..., 2]), "confidence is not touched"


def test_trembling_is_none_on_a_straight_course_and_only_of_what_is_seen() -> None:
    points = course(9)
    assert trembling(points) == pytest.approx(np.zeros(7 * 3))
    points[4, 1, 2] = 0.1
    assert len(trembling(points)) == 7 * 3 - 3
    assert len(trembling(points[:2])) == 0
