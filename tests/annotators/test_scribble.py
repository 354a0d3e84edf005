"""Tests that scribbles follow the dark lines of a picture, and stand still where the picture does."""

from __future__ import annotations

import av
import cv2
import numpy as np
import pytest
import real_clips

from annotators.scribble import Scribble


def draw_lines(size: tuple[int, int] = (240, 320)) -> np.ndarray:
    """Two frames of grey paper with a black cross of 3 pixels width in the middle."""
    paper = np.full((*size, 3), 180, np.uint8)
    height, width = size
    cv2.line(paper, (width // 2, height // 5), (width // 2, height * 4 // 5), (0, 0, 0), 3)
    cv2.line(paper, (width // 5, height // 2), (width * 4 // 5, height // 2), (0, 0, 0), 3)
    return np.stack([paper, paper])


def test_dark_lines_become_white_lines_on_black() -> None:
    clip = draw_lines()
    annotation = Scribble()(clip, 16.0)
    track = annotation.tracks["scribble"]
    assert track.shape == clip.shape
    assert track.dtype == np.uint8
    assert set(np.unique(track)) == {0, 255}
    white = track[..., 0] == 255
    assert white[(clip == 0).all(axis=-1)].all()
    near = cv2.dilate((clip[0] == 0).all(axis=-1).astype(np.uint8), np.ones((3, 3)))
    assert not white[0][near == 0].any()
    assert annotation.signals["scribble_density"] == pytest.approx(white.mean())


def test_a_flat_picture_has_no_lines() -> None:
    for grey in (0, 128, 255):
        annotation = Scribble()(np.full((2, 64, 96, 3), grey, np.uint8), 16.0)
        assert annotation.signals["scribble_density"] == 0
        assert not annotation.tracks["scribble"].any()


def test_bright_lines_and_faint_lines_are_not_drawn() -> None:
    assert Scribble()(255 - draw_lines() // 2, 16.0).tracks["scribble"][0, 120, 160].max() == 0
    faint = np.where(draw_lines() == 0, 170, 180).astype(np.uint8)
    assert Scribble()(faint, 16.0).signals["scribble_density"] == 0


def test_a_frame_is_drawn_the_same_whatever_surrounds_it() -> None:
    still, noise = draw_lines()[0], np.random.default_rng(3).integers(0, 256, (240, 320, 3)).astype(np.uint8)
    separate = Scribble()(still[None], 16.0).tracks["scribble"][0]
    between = Scribble()(np.stack([noise, still, noise]), 16.0).tracks["scribble"][1]
    np.testing.assert_array_equal(separate, between)


def test_lines_look_alike_at_every_resolution() -> None:
    large = draw_lines((480, 832))
    small = cv2.resize(large[0], (416, 240), interpolation=cv2.INTER_AREA)[None]
    densities = [Scribble()(clip, 16.0).signals["scribble_density"] for clip in (large, small)]
    assert densities[0] == pytest.approx(densities[1], rel=0.5)


@pytest.mark.parametrize("size", [(16, 16), (17, 33), (144, 176), (272, 640), (768, 512)])
def test_every_size_works(size: tuple[int, int]) -> None:
    clip = np.random.default_rng(4).integers(0, 256, (2, *size, 3)).astype(np.uint8)
    annotation = Scribble()(clip, 16.0)
    assert annotation.tracks["scribble"].shape == clip.shape
    assert set(annotation.signals) == set(Scribble.signals)


def test_a_still_video_is_drawn_still() -> None:
    with av.open(str(real_clips.path("d_still.mp4"))) as container:
        decoded = container.decode(video=0)
        frames = np.stack([next(decoded).to_ndarray(format="rgb24") for _ in range(10)])
    track = Scribble()(frames, 25.0).tracks["scribble"]
    assert (track[1:] != track[:-1]).mean() < 0.001
