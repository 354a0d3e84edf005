"""`plan` by the command line: what it foretells is what an ingest then makes, and what stands in the way is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import small_videos

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten files: nine with two shots each, one of them long, and one that is no video."""
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(8):
        small_videos.write(folder / f"{seed}.mp4", seed, shots=2)
    # 72 s, of which a minute is looked at.
    small_videos.write(folder / "long.mp4", 9, shots=32)
    (folder / "text.mp4").write_text("no video")
    return folder


@pytest.mark.long
def test_a_plan_says_what_is_there(vdot: Any, recipe: Any, videos: Path, tmp_path: Path) -> None:
    done = vdot("plan", videos, "--out", tmp_path / "out", "--recipe", recipe(), "--cpus", 64, "--json")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out").exists()
    told = json.loads(done.stdout)
    assert told["sources"] == len(told["probed"]) == 10
    assert told["codecs"] == {"h264": 9}
    assert told["cpus"] == 64
    assert any(check["name"] == "NOT_VIDEO in the probe" for check in told["checks"])
    assert "NOT_VIDEO in the probe" in done.stderr
    quantities = told["quantities"]
    # Two shots each, and 32 of the long one, of which a minute was looked at.
    clips, seconds = quantities["kept_clips"], quantities["video_s"]
    assert 8 * 2 + 25 <= clips["sampled"] <= 8 * 2 + 28
    assert seconds["sampled"] == pytest.approx(8 * 2 * 36 / 16 + 60, abs=2)
    for one, truth in ((clips, 48), (seconds, 48 * 36 / 16)):
        assert 0 <= one["low"] < truth - one["sampled"] < one["high"]
    assert (quantities["failed"]["total"], quantities["failed"]["high"]) == (1, 0)


@pytest.mark.long
def test_a_few_sources_tell_of_what_an_ingest_makes(
    vdot: Any, recipe: Any, videos: Path, tmp_path: Path, address: str
) -> None:
    out = tmp_path / "out"
    done = vdot("plan", videos, "--out", out, "--recipe", recipe(), "--probe", 6, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told["probed"]) == 6
    least, most = told["wall_s"][1:]
    assert least <= told["wall_s"][0] <= most

    made = vdot("ingest", videos, "--out", out, "--recipe", recipe(), "--address", address, "--json")
    assert made.returncode == 0, made.stderr
    clips = json.loads(made.stdout)["clips"]["kept"][""]
    size = sum(path.stat().st_size for path in out.rglob("*.tar"))
    for name, truth in (("kept_clips", clips), ("bytes", size)):
        found = told["quantities"][name]
        assert found["low"] <= truth - found["sampled"] <= found["high"]

    # What is there is no work.
    again = vdot("plan", videos, "--out", out, "--recipe", recipe(), "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["sources"] == 0


def test_a_plan_that_cannot_come_true_is_refused(vdot: Any, recipe: Any, videos: Path, tmp_path: Path) -> None:
    assert vdot("plan", tmp_path / "nowhere").returncode == 2
    assert "does not exist" in vdot("plan", tmp_path / "nowhere").stderr
    assert vdot("plan", videos, "--recipe", recipe(stages=[["nonesuch"]])).returncode == 2
