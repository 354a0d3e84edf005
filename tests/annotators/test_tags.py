"""Tests that tags name what is clearly visible, and nothing in noise."""

from __future__ import annotations

import numpy as np
import pytest
import real_clips

from annotators.tags import Tags


@pytest.fixture(scope="module")
def tags() -> Tags:
    return real_clips.load(Tags)


@pytest.mark.parametrize(
    ("clip", "word"),
    [
        ("VACE__test2.mp4", "tabby"),
        ("sam2__05_default_juggle.mp4", "soccer ball"),
        ("data-juicer__video11.mp4", "castle"),
        ("sample-videos__bottle-detection.mp4", "water bottle"),
    ],
)
def test_plain_things_are_named(tags: Tags, clip: str, word: str) -> None:
    annotation = tags(real_clips.frames(clip, 8, every=4), 16.0)
    assert word in annotation.signals["tags"]
    assert 0.1 <= annotation.signals["tag_score"] <= 1
    assert annotation.data["tags"][0][1] == pytest.approx(annotation.signals["tag_score"], abs=1e-3)


def test_nothing_is_named_in_noise(tags: Tags) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (8, 90, 120, 3), np.uint8)
    annotation = tags(noise, 16.0)
    assert annotation.signals["tags"] is None or annotation.signals["tag_score"] < 0.35, "too little for a caption"
