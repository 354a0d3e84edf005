"""Tests that the opt-in score stays low on harmless clips, and that one frame is enough to raise it."""

from __future__ import annotations

import numpy as np
import pytest
import real_clips

from filters.unsafe import Unsafe


@pytest.fixture(scope="module")
def unsafe() -> Unsafe:
    return real_clips.load(Unsafe)


@pytest.mark.parametrize(
    "name",
    [
        "learning-area__frog.webm",
        "DVR-Scan__traffic_camera.mp4",
        "VACE__test.mp4",
        "kivy__city.mpg",
        "psychopy__talk.mp4",
    ],
)
def test_harmless_clips(unsafe: Unsafe, name: str) -> None:
    assert unsafe(real_clips.frames(name, 12, every=2), 16.0)["unsafe"] < 0.5


def test_it_is_the_largest_of_the_frames(unsafe: Unsafe) -> None:
    frames = real_clips.frames("psychopy__intro.mp4", 12, width=320, height=320)
    alone = [unsafe(frames[k : k + 1], 16.0)["unsafe"] for k in (0, 2, 4, 7, 9, 11)]
    assert unsafe(frames, 16.0)["unsafe"] == pytest.approx(max(alone), abs=1e-5)
    assert np.ptp(alone) > 0
