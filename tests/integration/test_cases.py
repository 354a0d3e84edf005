"""Tests small problematic files, each from a fault reported by users of other tools, in the complete program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import program
import pytest
from numbered import number_of

from pipeline.formats.clip_decode import decode_clip

CASES = Path(__file__).parents[1] / "data/cases"

# For each source: seconds, frames at 25 per second, and the number that the first frame shows.
EXPECTED: dict[str, tuple[float, int, int]] = {
    "packed_b.avi": (6.0, 150, 0),
    "h264_bf.avi": (6.0, 150, 0),
    "raw_remuxed_ff9.mp4": (5.92, 148, 2),
    "subs_longer.mkv": (6.0, 150, 0),
    "two_videos.mkv": (6.0, 150, 0),
    "copyts_cut.mkv": (4.48, 112, 38),
    "unix_epoch.mkv": (6.0, 150, 0),
    "gap_60s.mp4": (66.0, 150, 0),
}
# Nothing is in gap_60s.mp4 from 3 s to 63 s.
GAP_S = (3.0, 63.0)


@pytest.fixture(scope="module")
def ingested(vdot: Any, recipe: Any, tmp_path_factory: pytest.TempPathFactory) -> program.Out:
    out = program.Out(tmp_path_factory.mktemp("cases") / "out")
    recipe_file = recipe(
        grid={"frames": 81, "min_frames": 17}, shots="adaptive", rules={"low_frame_rate": "source_fps < 8"}
    )
    process = vdot("ingest", CASES, "--out", out.url, "--recipe", recipe_file, timeout=300)
    assert process.returncode == 0, process.stderr
    assert vdot("verify", out.url, "--workers", 1).returncode == 0
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", [*EXPECTED])
def test_every_frame_of_a_case_is_in_its_place(ingested: program.Out, name: str) -> None:
    seconds, frames, first = EXPECTED[name]
    source = ingested.sources()[name]
    assert (source["status"], source["code"]) == ("cut", None), source["detail"]
    assert (source["source_width"], source["source_height"]) == (320, 240)
    assert source["source_fps"] == pytest.approx(25, rel=2e-3)
    assert source["source_duration_s"] == pytest.approx(seconds, abs=0.05)
    assert (source["source_frames"], source["source_frames_unused"]) == (frames, 0)
    begin_s = source["shots"][0]["start_s"]
    clips = [clip for clip in ingested.clips().values() if clip["source_uri"] == source["source_uri"]]
    assert {clip["status"] for clip in clips} == {"kept"}
    samples = ingested.samples()
    for clip in clips:
        numbers = [number_of(picture) for picture in decode_clip(samples[clip["clip_id"]]["mp4"])]
        last = first + round(without_gap(name, clip["end_s"] - begin_s) * 25)
        start_s = without_gap(name, clip["start_s"] - begin_s)
        assert numbers == [min(first + int((start_s + k / 16) * 25 + 0.03), last) for k in range(len(numbers))]
    # All of the source except the remainders at the ends of shots.
    assert sum(clip["frames"] for clip in clips) / 16 > min(seconds, 6.0) - 2.5


def without_gap(name: str, at_s: float) -> float:
    """A time of a source without its gap, in which no clip may lie."""
    if name != "gap_60s.mp4" or at_s < GAP_S[0]:
        return at_s
    assert at_s >= GAP_S[1] - 1e-6
    return at_s - 60


@pytest.mark.slow
def test_pictures_of_the_cases(ingested: program.Out) -> None:
    sources = ingested.sources()
    verdicts = {name: (row["status"], row["rule"] or row["code"]) for name, row in sources.items()}
    # 1.25 s is enough for 17 frames at 16 per second.
    assert {verdict for name, verdict in verdicts.items()} == {("cut", None)}
    clips = ingested.clips().values()
    sizes = {Path(clip["source_uri"]).name: (clip["width"], clip["height"]) for clip in clips}
    assert sizes["portrait_360x640.mp4"] == (352, 640)
    assert sizes["crop.mkv"] == (320, 160)
    samples = {
        Path(clip["source_uri"]).name: decode_clip(ingested.samples()[clip["clip_id"]]["mp4"])
        for clip in clips
        if Path(clip["source_uri"]).name in ("crop.mkv", "gray_limited_hevc.mp4")
    }
    # The bars that the container crops are red.
    edges = samples["crop.mkv"][:, [0, -1]].astype(int)
    assert (edges[..., 0] - edges[..., 1:].max(axis=-1) > 128).mean() < 0.3
    gray = samples["gray_limited_hevc.mp4"]
    assert np.abs(np.diff(gray.astype(int), axis=-1)).max() <= 4
    circles = [clip for clip in clips if Path(clip["source_uri"]).name == "circle.ts"]
    assert len(circles) == 2
    for clip in circles:
        picture = decode_clip(ingested.samples()[clip["clip_id"]]["mp4"])[8].max(axis=-1) > 128
        width, height = (np.flatnonzero(picture.any(axis=axis)).size for axis in (0, 1))
        assert width == pytest.approx(height, rel=0.04)
