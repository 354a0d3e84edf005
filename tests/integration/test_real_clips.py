"""Tests real clips in the complete program: each gets a verdict, and is upright and in time."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import program
import pytest
import real_clips
from numpy.typing import NDArray

from pipeline.formats.clip_decode import decode_clip
from pipeline.upkeep.verify import verify

pytestmark = [pytest.mark.slow, pytest.mark.long]

# The default recipe's grid, without what is slow and not tested here.
RECIPE = {
    "shots": "adaptive",
    "grid": {"fps": 16, "frames": 81, "min_frames": 33, "area": 102400, "multiple": 16},
    "stages": [["scribble"]],
    "filters": ["luma"],
    "rules": {"too_dark": "luma < 20"},
    "tasks": {},
    "encode": {"preset": "ultrafast"},
}


@pytest.fixture(scope="module")
def out(vdot: Any, recipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    dataset = program.Out(tmp_path_factory.mktemp("real") / "out")
    files = real_clips.available().values()
    process = vdot("ingest", *files, "--out", dataset.url, "--recipe", recipe(**RECIPE), timeout=500)
    assert process.returncode == 0, process.stderr
    return dataset


@pytest.fixture(scope="module")
def pictures(out: Any) -> Any:
    """`pictures(file name)` is the first clip of a source, uint8 [T, H, W, 3]."""
    samples, rows = out.samples(), out.clips()

    def first_clip(name: str) -> NDArray[np.uint8]:
        uri = str(real_clips.path(name))
        kept_rows = [row for row in rows.values() if row["source_uri"].endswith(uri) and row["status"] == "kept"]
        return decode_clip(samples[min(kept_rows, key=lambda row: row["start_s"])["clip_id"]]["mp4"])

    return first_clip


def psnr(picture: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((picture.astype(float) - reference) ** 2), 1e-9)))


def test_every_source_reaches_a_verdict(out: Any) -> None:
    sources = out.sources()
    assert set(sources) == set(real_clips.available())
    labels = real_clips.labels().values()
    unreadable = {label["file"] for label in labels if label.get("truth", {}).get("readable") is False}
    failed = {name: row["code"] for name, row in sources.items() if row["status"] == "failed"}
    assert failed == dict.fromkeys(unreadable, "DECODE_ERROR")
    rows = out.clips()
    for name, row in sources.items():
        listed = {window["clip_id"] for window in row["windows"] or []}
        assert listed == {clip for clip, clip_row in rows.items() if clip_row["source_uri"] == row["source_uri"]}, name
    assert verify(out.url, 2).problems == []


@pytest.mark.parametrize("name", ["d_av1.mkv", "d_vp9.webm", "d_hevc10.mp4"])
def test_codecs_come_out_in_time(pictures: Any, name: str) -> None:
    """They were made from the first two seconds of another clip: each frame matches that clip's at the same time."""
    original = pictures("sam2__05_default_juggle.mp4")
    part = pictures(name)
    assert len(part) == 33
    scaled = np.stack([cv2.resize(frame, part.shape[2:0:-1], interpolation=cv2.INTER_AREA) for frame in original[:36]])
    for index in range(2, 31):
        likeness = {shift: psnr(part[index], scaled[index + shift]) for shift in (-2, -1, 0, 1, 2)}
        assert likeness[0] > 25
        assert max(likeness, key=likeness.__getitem__) == 0 or likeness[0] > max(likeness.values()) - 0.5


def test_rotated_clip_is_the_right_way_up(pictures: Any) -> None:
    upright, turned = pictures("d_cuts3.mp4"), pictures("d_rot90.mp4")
    assert turned.shape[1] > turned.shape[2]
    expected = np.rot90(upright[0], 1)
    size = (turned.shape[2], turned.shape[1])
    likeness = {k: psnr(turned[0], cv2.resize(np.rot90(expected, k).copy(), size)) for k in (0, 2)}
    # The crops differ: a rotated picture has another size on the grid.
    assert likeness[0] > likeness[2] + 6


def test_slow_sources_keep_their_time(out: Any) -> None:
    """A clip never ends after its source, however few frames per second that has."""
    for row in out.clips().values():
        assert row["end_s"] - row["start_s"] <= (row["frames"] - 1) / row["fps"] + 1e-3
