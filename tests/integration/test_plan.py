"""Tests the command `plan`: its estimates hold for the ingest, and it names obstacles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import program
import pytest
import small_videos

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten files: eight videos of two shots, a long one, and a file that is not a video."""
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(8):
        small_videos.write(folder / f"{seed}.mp4", seed, shots=2)
    # 72 s, of which a minute is probed.
    small_videos.write(folder / "long.mp4", 9, shots=32)
    (folder / "text.mp4").write_text("no video")
    return folder


@pytest.mark.long
def test_a_plan_says_what_is_there(vdot: Any, recipe: Any, videos: Path, tmp_path: Path) -> None:
    process = vdot("plan", videos, "--out", tmp_path / "out", "--recipe", recipe(), "--cpus", 64, "--json")
    assert process.returncode == 0, process.stderr
    assert not (tmp_path / "out").exists()
    plan = json.loads(process.stdout)
    assert plan["sources"] == len(plan["probed"]) == 10
    assert plan["codecs"] == {"h264": 9}
    assert plan["cpus"] == 64
    assert any(check["name"] == "NOT_VIDEO in the probe" for check in plan["checks"])
    assert "NOT_VIDEO in the probe" in process.stderr
    quantities = plan["quantities"]
    # Two shots each, and 32 of the long video, of which a minute was probed.
    clips, seconds = quantities["kept_clips"], quantities["video_s"]
    assert 8 * 2 + 25 <= clips["sampled"] <= 8 * 2 + 28
    assert seconds["sampled"] == pytest.approx(8 * 2 * 36 / 16 + 60, abs=2)
    for quantity, truth in ((clips, 48), (seconds, 48 * 36 / 16)):
        assert 0 <= quantity["low"] < truth - quantity["sampled"] < quantity["high"]
    assert (quantities["failed"]["total"], quantities["failed"]["high"]) == (1, 0)


@pytest.mark.long
def test_a_few_sources_tell_of_what_an_ingest_makes(
    vdot: Any, recipe: Any, videos: Path, tmp_path: Path, address: str
) -> None:
    out = tmp_path / "out"
    planned = vdot("plan", videos, "--out", out, "--recipe", recipe(), "--probe", 6, "--json")
    assert planned.returncode == 0, planned.stderr
    plan = json.loads(planned.stdout)
    assert len(plan["probed"]) == 6
    shortest, longest = plan["wall_s"][1:]
    assert shortest <= plan["wall_s"][0] <= longest

    ingested = vdot("ingest", videos, "--out", out, "--recipe", recipe(), "--address", address, "--json")
    assert ingested.returncode == 0, ingested.stderr
    clips = json.loads(ingested.stdout)["clips"]["kept"][""]
    # The size of the shards depends on how many there are, and so on how fast the machine is.
    (total,) = program.Out(out).query("SELECT sum(coalesce(bytes, 0) + coalesce(preview_bytes, 0)) AS bytes FROM clips")
    for name, truth in (("kept_clips", clips), ("bytes", float(total["bytes"]))):
        quantity = plan["quantities"][name]
        assert quantity["low"] <= truth - quantity["sampled"] <= quantity["high"]

    # What is finished needs no more work.
    replanned = vdot("plan", videos, "--out", out, "--recipe", recipe(), "--json")
    assert replanned.returncode == 0, replanned.stderr
    assert json.loads(replanned.stdout)["sources"] == 0


def test_a_plan_that_cannot_come_true_is_refused(vdot: Any, recipe: Any, videos: Path, tmp_path: Path) -> None:
    assert vdot("plan", tmp_path / "nowhere").returncode == 2
    assert "does not exist" in vdot("plan", tmp_path / "nowhere").stderr
    assert vdot("plan", videos, "--recipe", recipe(stages=[["nonesuch"]])).returncode == 2
