"""Tests that overlaid words are read and distinguished from words in the scene, on synthetic and real clips."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import real_clips

from annotators.text import Text


@pytest.fixture(scope="module")
def reader() -> Text:
    return real_clips.load(Text)


def make_street(count: int = 21) -> Any:
    """A street that passes by, uint8 [count, 272, 480, 3]."""
    rng = np.random.default_rng(4)
    coarse = cv2.resize(rng.integers(40, 200, (18, 60, 3), np.uint8), (1400, 272), interpolation=cv2.INTER_CUBIC)
    return np.stack([coarse[:, 20 * k : 20 * k + 480] for k in range(count)])


def write_words(picture: Any, words: str, position: tuple[int, int], size: float = 1.0, colour: int = 255) -> None:
    cv2.putText(picture, words, position, cv2.FONT_HERSHEY_SIMPLEX, size, (colour,) * 3, 2, cv2.LINE_AA)


def signals(reader: Text, frames: Any) -> dict[str, Any]:
    return reader(frames, 16.0).signals


def test_without_words_nothing_is_read(reader: Text) -> None:
    annotation = reader(make_street(), 16.0)
    areas = dict.fromkeys(("text_area", "overlay_area", "overlay_edge", "watermark_area"), 0.0)
    assert annotation.signals == areas | {"words": None}
    assert annotation.data == {"text": []}


def test_subtitles_lie_over_the_picture_and_are_no_watermark(reader: Text) -> None:
    frames = make_street()
    for number, frame in enumerate(frames):
        write_words(frame, "Where are you going" if number < 11 else "Only to the harbour", (90, 250), 0.9)
    annotation = reader(frames, 16.0)
    assert 0.02 < annotation.signals["overlay_area"] < 0.2
    assert annotation.signals["watermark_area"] == 0.0
    words = {line["words"].lower() for line in annotation.data["text"]}
    assert any("going" in text for text in words)
    assert any("harbour" in text for text in words)


def test_what_lies_at_the_edge_is_told_from_what_lies_in_the_middle(reader: Text) -> None:
    edge, middle = make_street(), make_street()
    for frame in edge:
        write_words(frame, "Where are you going", (90, 250), 0.9)
    for frame in middle:
        write_words(frame, "HARBOUR", (170, 170), 0.9)
    low, centred = signals(reader, edge), signals(reader, middle)
    assert low["overlay_edge"] == low["overlay_area"] > 0.01
    assert centred["overlay_area"] > 0.005
    assert centred["overlay_edge"] == 0.0


def test_words_are_said_once_each(reader: Text) -> None:
    frames = make_street()
    for frame in frames:
        write_words(frame, "Where are you going", (90, 60), 0.9)
        write_words(frame, "Only to the harbour", (90, 250), 0.9)
    words = signals(reader, frames)["words"].lower().split(" / ")
    assert len(words) == 2
    assert "going" in words[0]
    assert "harbour" in words[1]


def test_a_faint_word_that_stays_is_a_watermark(reader: Text) -> None:
    frames = make_street()
    mark = np.zeros_like(frames[0])
    write_words(mark, "SAMPLESTOCK", (60, 150), 1.6)
    frames = np.clip(frames + mark * 0.3, 0, 255).astype(np.uint8)
    values = signals(reader, frames)
    assert values["watermark_area"] > 0.03
    assert values["overlay_area"] >= values["watermark_area"]


def test_a_sign_that_passes_is_in_the_scene(reader: Text) -> None:
    frames = make_street()
    for number, frame in enumerate(frames):
        write_words(frame, "BAKERY", (330 - 15 * number, 120), 1.2)
    values = signals(reader, frames)
    assert values["text_area"] > 0.01
    assert values["overlay_area"] == 0.0
    assert values["watermark_area"] == 0.0


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "overlay", "watermark"),
    [
        ("d_subtitles.mp4", True, False),
        ("d_title_card.mp4", True, True),
        ("d_watermark_center.mp4", True, True),
        ("d_watermark_corner.mp4", True, True),
        ("FastGen__02_two_cyclists_stop_sign.mp4", False, False),
        ("sam2__03_blocks.mp4", False, False),
        ("sam2__01_dog.mp4", False, False),
        ("kivy__city.mpg", False, False),
        ("psychopy__talk.mp4", False, False),
    ],
)
def test_words_of_real_clips(reader: Text, name: str, overlay: bool, watermark: bool) -> None:
    values = signals(reader, real_clips.frames(name, 33, every=4, width=640, height=352))
    assert (values["overlay_area"] > 0.002, values["watermark_area"] > 0.0) == (overlay, watermark)
