"""Tests that the template describes what was measured, in plain words, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from annotators.caption_template import CaptionTemplate

FRAMES = np.zeros((2, 16, 16, 3), np.uint8)
NO_SIGNALS: dict[str, Any] = {
    "tags": None, "tag_score": 0.05, "pose_people": 0, "pose_coverage": 0.0, "face_coverage": 0.0, "words": None,
    "camera": None, "camera_zoom": None, "motion": 2.0, "luma": 120.0, "colour_spread": 30.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("signals", "caption"),
    [
        ({}, "A video."),
        ({"tags": "soccer ball, rugby ball", "tag_score": 0.8, "pose_people": 1, "pose_coverage": 1.0, "camera": "pan"},
         "A video of a person and a soccer ball. The camera pans."),
        ({"tags": "Egyptian cat", "tag_score": 0.6, "camera": "zoom", "camera_zoom": 3.0},
         "A video of an Egyptian cat. The camera zooms in."),
        ({"camera": "zoom", "camera_zoom": -3.0}, "A video. The camera zooms out."),
        ({"pose_people": 3, "pose_coverage": 0.9, "luma": 30.0}, "A dark video of people."),
        ({"tags": "unicycle", "tag_score": 0.6}, "A video of a unicycle."),
        ({"tags": "hourglass", "tag_score": 0.6}, "A video of an hourglass."),
        ({"tags": "European gallinule", "tag_score": 0.6}, "A video of a European gallinule."),
        ({"tags": "parallel bars", "tag_score": 0.6}, "A video of parallel bars."),
        ({"pose_people": 3, "pose_coverage": 0.1}, "A video."),
        ({"face_coverage": 1.0, "colour_spread": 0.5}, "A black-and-white video of a person."),
        ({"words": "STOP / MAIN ST", "motion": 0.0, "camera": "still"},
         'A video. The camera stands still. Hardly anything moves. The words "STOP MAIN ST" can be read.'),
        ({"words": 'SAY "HI"'}, "A video. The words \"SAY 'HI'\" can be read."),
        ({"tags": "web site", "tag_score": 0.9}, "A video."),
        ({"tags": "castle", "tag_score": 0.2}, "A video."),
    ],
)  # fmt: skip
def test_what_was_measured_is_said(signals: dict[str, Any], caption: str) -> None:
    annotation = CaptionTemplate()(FRAMES, 16.0, **(NO_SIGNALS | signals))
    assert annotation.caption == caption
    assert annotation.signals == {"caption_method": "template"}


def test_it_asks_for_all_that_it_uses_and_for_no_more() -> None:
    assert set(CaptionTemplate.needs) == NO_SIGNALS.keys()
