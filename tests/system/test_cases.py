"""Small files of trouble, each after a fault that users of other tools report, through the whole program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import program
import pytest
from numbered import number_of

from pipeline import encode

CASES = Path(__file__).parents[2].parent / "shared/cases"

# Of each source: width, height, frames a second, seconds, frames; clips as the first and the last number that each shows.
EXPECTED: dict[str, tuple[int, int, float, float, int, list[tuple[int, int]]]] = {
    "packed_b.avi": (320, 240, 25, 6.0, 150, [(0, 125)]),
    "h264_bf.avi": (320, 240, 25, 6.0, 150, [(0, 125)]),
    "raw_remuxed_ff9.mp4": (320, 240, 25, 5.92, 148, [(2, 127)]),
    "subs_longer.mkv": (320, 240, 25, 6.0, 150, [(0, 125)]),
    "two_videos.mkv": (320, 240, 25, 6.0, 150, [(0, 125)]),
    "copyts_cut.mkv": (320, 240, 25, 4.48, 112, [(38, 144)]),
    "unix_epoch.mkv": (320, 240, 25, 6.0, 150, [(0, 125)]),
    "gap_60s.mp4": (320, 240, 25, 66.0, 150, [(0, 74), (75, 149)]),
}


@pytest.fixture(scope="module")
def ingested(vdot: Any, recipe: Any, tmp_path_factory: pytest.TempPathFactory) -> program.Out:
    out = program.Out(tmp_path_factory.mktemp("cases") / "out")
    light = recipe(grid={"frames": 81, "min_frames": 17}, shots="adaptive", rules={"low_frame_rate": "source_fps < 8"})
    done = vdot("ingest", CASES, "--out", out.url, "--recipe", light, timeout=300)
    assert done.returncode == 0, done.stderr
    assert vdot("verify", out.url, "--workers", 1).returncode == 0
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", [*EXPECTED])
def test_every_frame_of_a_case_is_in_its_place(ingested: program.Out, name: str) -> None:
    width, height, fps, seconds, frames, spans = EXPECTED[name]
    source = ingested.sources()[name]
    assert (source["status"], source["code"]) == ("cut", None), source["detail"]
    assert (source["source_width"], source["source_height"]) == (width, height)
    assert source["source_fps"] == pytest.approx(fps, rel=2e-3)
    assert source["source_duration_s"] == pytest.approx(seconds, abs=0.05)
    assert (source["source_frames"], source["source_frames_unused"]) == (frames, 0)
    clips = sorted((clip for clip in ingested.clips().values() if clip["source_uri"] == source["source_uri"]),
                   key=lambda clip: clip["start_s"])  # fmt: skip
    assert [clip["status"] for clip in clips] == ["kept"] * len(spans)
    samples = ingested.samples()
    for clip, (first, last) in zip(clips, spans, strict=True):
        numbers = [number_of(picture) for picture in encode.decode(samples[clip["clip_id"]]["mp4"])]
        assert numbers == [min(first + int(k / 16 * fps + 0.03), last) for k in range(len(numbers))]
