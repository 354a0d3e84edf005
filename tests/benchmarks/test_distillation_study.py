"""Tests the command of the distillation study: it reports each arm, resumes, and refuses other sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import small_mixture

pytest.importorskip("diffusers")


@pytest.fixture
def mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A mixture of clips that are long enough for the study, two of six held out."""
    monkeypatch.setattr(small_mixture, "SHAPES", [(37, 96, 160, 1)])
    small_mixture.members.cache_clear()
    yield small_mixture.make(tmp_path, 6, held=2)
    small_mixture.members.cache_clear()


def test_crops_are_of_the_clips_of_their_part_and_follow_their_own_luma(mixture: Path) -> None:
    from benchmarks.distillation import clips, scenes

    train, test, counts = clips.cut_crops(str(mixture), 9, 4)
    # Two clips of each source.
    assert counts == {"train_sources": 2, "test_sources": 1}
    assert [crop.source for crop in train[:4]] == [crop.source for crop in train[2:6]]
    assert not {crop.source for crop in train} & {crop.source for crop in test}
    assert (len(train), len(test)) == (9, 4)
    for crop in (*train, *test):
        assert crop.clip.shape == (scenes.FRAMES, scenes.SIDE, scenes.SIDE, 3)
        assert crop.clip.std() > 1
        assert abs(scenes.luma(crop.clip) - crop.depth).max() <= 0.5
        assert np.array_equal(crop.shapes, crop.depth > scenes.NEAR)
        assert crop.hidden.mean() == pytest.approx(0.25)


@pytest.mark.slow
@pytest.mark.long
def test_half_of_the_clips_of_a_study_are_a_mixtures(mixture: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    process = run_study("--size", "tiny", "--seeds", "1", "--arms", "A", "--mixture", str(mixture), "--out", str(out))
    assert process.returncode == 0, process.stderr[-2000:]
    codec = json.loads((out / "codec.json").read_text())
    # Three of six training clips and two of four test clips are real.
    assert (codec["train_sources"], codec["test_sources"]) == (2, 1)
    assert codec["clips"].startswith("synthetic, and crops of the clips of mixture ")


def run_study(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from benchmarks.cli import main; main()", "distillation", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.long
def test_a_study_that_was_ended_goes_on_and_reports_every_arm(tmp_path: Path) -> None:
    out = tmp_path / "study"
    first = run_study("--size", "tiny", "--seeds", "1", "--arms", "AF", "--out", str(out))
    assert first.returncode == 0, first.stderr[-2000:]
    report = json.loads((out / "report.json").read_text())
    assert set(report["arms"]) == {"A", "F"}
    assert report["study"]["clips"] == "synthetic"
    assert "Clips: synthetic" in first.stdout
    assert all(len(run["seeds"]) == 1 for run in report["arms"].values())
    # As if it ended between two arms: complete results stay unchanged.
    arm_file = (out / "arms" / "A-0.json").read_bytes()
    (out / "arms" / "F-0.json").unlink()
    second = run_study("--size", "tiny", "--seeds", "1", "--arms", "AF", "--out", str(out))
    assert second.returncode == 0, second.stderr[-2000:]
    assert "arm F, seed 0" in second.stderr
    assert "arm A" not in second.stderr
    assert "teacher: step" not in second.stderr
    assert (out / "arms" / "A-0.json").read_bytes() == arm_file
    repeated = json.loads((out / "report.json").read_text())
    assert repeated["arms"]["F"]["metrics"] == report["arms"]["F"]["metrics"]
    refused = run_study("--size", "cpu", "--out", str(out))
    assert refused.returncode == 2
    assert "name another folder" in refused.stderr
