"""Tests the conditions of tasks: kept pixels are the clip's, the others are gray or a track, and draws repeat."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.formats.conditions import GRAY, MASKS, build_condition, make_generator, to_gray

SHAPE = (17, 48, 64)


def noise(seed: int, shape: tuple[int, ...] = SHAPE) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def subject(shape: tuple[int, ...] = SHAPE) -> Any:
    """A white disc that moves to the right, on black."""
    rows, columns = np.mgrid[: shape[1], : shape[2]]
    discs = [(rows - 24) ** 2 + (columns - 16 - 2 * step) ** 2 < 64 for step in range(shape[0])]
    return np.repeat(np.uint8(255) * np.stack(discs)[..., None], 3, axis=-1)


FRAMES, POSE = noise(1), noise(2)
TRACKS = {"pose": lambda: POSE, "mask": subject}


def draw_condition(*parts: str, seed: int = 0, tracks: Any = TRACKS, references: Any = (), frames: Any = FRAMES) -> Any:
    return build_condition(parts, frames, tracks, references, make_generator(seed, 0, "clip", "+".join(parts)))


@pytest.mark.parametrize("task", MASKS)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_what_is_kept_is_the_clip_and_the_rest_is_gray_or_the_track(task: str, seed: int) -> None:
    plain, composed = draw_condition(task, seed=seed), draw_condition(task, "pose", seed=seed)
    assert plain.mask.dtype == bool
    assert plain.mask.shape == SHAPE
    # Some pixels are visible and some are masked.
    assert 0 < plain.mask.mean() < 1
    assert (plain.video[~plain.mask] == FRAMES[~plain.mask]).all()
    assert (plain.video[plain.mask] == GRAY).all()
    assert (composed.video[composed.mask] == POSE[composed.mask]).all()
    assert (composed.video[~composed.mask] == FRAMES[~composed.mask]).all()


@pytest.mark.parametrize("task", MASKS)
def test_a_draw_follows_from_seed_epoch_clip_and_task_alone(task: str) -> None:
    def mask(*key: Any) -> Any:
        return build_condition([task], FRAMES, TRACKS, (), make_generator(*key)).mask

    assert (mask(1, 2, "a", task) == mask(1, 2, "a", task)).all()
    masks = [mask(seed, epoch, clip, task) for seed in range(3) for epoch in range(3) for clip in ("a", "b")]
    if task == "firstframe":
        assert all((drawn == masks[0]).all() for drawn in masks)
    else:
        assert len({drawn.tobytes() for drawn in masks}) > 2


@given(st.integers(0, 20).map(lambda groups: 4 * groups + 1), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_an_extension_gives_whole_groups_at_one_end(count: int, seed: int) -> None:
    shape = (count, 16, 16)
    visible = ~draw_condition("extension", seed=seed, frames=noise(0, shape), tracks={}).mask.any((1, 2))
    # The autoencoder's groups: the first frame, then four frames each.
    groups = [visible[:1], *visible[1:].reshape(-1, 4)]
    assert all(group.all() or not group.any() for group in groups)
    assert 0 < visible.sum() <= max(1, count // 2 + 1)
    assert visible[0] or visible[-1]
    assert np.diff(visible.astype(int)).astype(bool).sum() <= 1


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_a_border_is_the_same_in_all_frames_and_leaves_the_middle(seed: int) -> None:
    mask = draw_condition("outpaint", seed=seed).mask
    assert (mask == mask[0]).all()
    assert not mask[0, 20:28, 24:40].any()
    assert mask[0, [0, -1], :].all(1).any() or mask[0][:, [0, -1]].all(0).any()


@given(st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_a_hole_covers_the_subject_with_a_margin_or_is_a_box_that_stands_still(seed: int) -> None:
    disc = subject()[..., 0] > 0
    with_subject = draw_condition("inpaint", seed=seed).mask
    assert with_subject[disc].all()
    assert with_subject.sum() > disc.sum()
    without_subject = draw_condition("inpaint", seed=seed, tracks={}).mask
    assert (without_subject == without_subject[0]).all()
    assert 0.05 < without_subject.mean() < 0.4


@given(st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_a_hole_leaves_some_of_every_frame(seed: int) -> None:
    cross = np.zeros(SHAPE, bool)
    cross[:, 22:26], cross[:, :, 30:34] = True, True
    full = np.ones(SHAPE, bool)
    for region in (cross, full):
        track = np.repeat(np.uint8(255) * region[..., None], 3, axis=-1)
        mask = draw_condition("inpaint", seed=seed, tracks={"mask": lambda track=track: track}).mask
        assert 0 < mask.mean((1, 2)).max() <= 0.75


@pytest.mark.parametrize("side", [16, 48, 160])
def test_a_border_leaves_some_of_small_pictures(side: int) -> None:
    for seed in range(100):
        mask = draw_condition("outpaint", seed=seed, frames=noise(0, (5, side, side)), tracks={}).mask
        assert 0 < mask.mean() <= 0.9


def test_control_tracks_references_and_text() -> None:
    pose = draw_condition("pose")
    assert pose.mask is None
    assert (pose.video == POSE).all()
    levels = draw_condition("gray").video
    assert (levels == to_gray(FRAMES)).all()
    assert (levels[..., 0] == levels[..., 2]).all()
    # ITU-R BT.601: pure red is 76 of 255.
    assert to_gray(np.full((1, 2, 2, 3), (255, 0, 0), np.uint8))[0, 0, 0, 0] == 76
    picture = noise(3, (8, 8))
    conditioned = draw_condition("reference", "pose", references=[picture])
    assert (conditioned.references[0] == picture).all()
    assert (conditioned.video == POSE).all()
    assert draw_condition("text") == draw_condition("text")
    assert draw_condition("text").video is None


def test_what_a_clip_lacks_is_said() -> None:
    with pytest.raises(ValueError, match="no track 'depth'"):
        draw_condition("depth")
    with pytest.raises(ValueError, match="no reference"):
        draw_condition("reference")
    with pytest.raises(ValueError, match="second control track"):
        draw_condition("pose", "gray")
