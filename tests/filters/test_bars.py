"""Tests that letterbox and pillarbox are found in synthetic and real clips, and nothing else is taken for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import real_clips
from numbered import LIMIT, write

from pipeline.video.content_box import find_content_box
from pipeline.video.probe import probe_video


def make_texture(width: int, height: int, count: int = 13) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)
    return np.stack([np.roll(coarse, 8 * k, axis=1)[:height, :width] for k in range(count)]).astype(np.uint8)


@pytest.mark.parametrize("colour", [0, 255])
@pytest.mark.parametrize("box", [(0, 24, 160, 104), (32, 0, 128, 128), (16, 16, 144, 112)])
def test_bars_are_found(tmp_path: Path, box: tuple[int, int, int, int], colour: int) -> None:
    framed = np.full((13, 128, 160, 3), colour, np.uint8)
    x0, y0, x1, y1 = box
    framed[:, y0:y1, x0:x1] = make_texture(x1 - x0, y1 - y0)
    path = write(tmp_path / "b.mp4", framed)
    measured = find_content_box(path, probe_video(path, LIMIT))
    assert measured is not None
    assert np.abs(np.array(measured) - box).max() <= 2


def test_dark_pictures_and_titles_have_no_bars(tmp_path: Path) -> None:
    spot = np.zeros((13, 128, 160, 3), np.uint8)
    spot[:, 40:90, 50:110] = make_texture(60, 50)
    title = np.zeros((13, 128, 160, 3), np.uint8)
    title[:, 56:72, 20:140:8] = 255
    one_sided = make_texture(160, 128)
    one_sided[:, :30] = 0
    for index, pictures in enumerate([spot, title, one_sided, make_texture(160, 128), np.zeros_like(spot)]):
        path = write(tmp_path / f"{index}.mp4", pictures)
        assert find_content_box(path, probe_video(path, LIMIT)) is None, index


@pytest.mark.parametrize(
    ("name", "box"),
    [
        ("d_letterbox.mp4", (0, 60, 640, 420)),
        ("d_pillarbox.mp4", (187, 0, 667, 270)),
        ("d_dark.mp4", None),
        ("d_fade_black.mp4", None),
        ("d_title_card.mp4", None),
        ("torchcodec__nasa_13013.mp4", None),
        ("gradio__earth.mp4", None),
        ("gradio__thanks.mp4", None),
    ],
)
def test_bars_of_real_clips(name: str, box: tuple[int, int, int, int] | None) -> None:
    path = real_clips.path(name)
    measured = find_content_box(path, probe_video(path, LIMIT))
    if box is None:
        assert measured is None
    else:
        assert measured is not None
        assert np.abs(np.array(measured) - box).max() <= 4
