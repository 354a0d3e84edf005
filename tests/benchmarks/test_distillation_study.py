"""The distillation study from its command: it reports each arm, goes on where it was ended, refuses other sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers")


def study(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from benchmarks.cli import main; main()", "distillation", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.long
def test_a_study_that_was_ended_goes_on_and_reports_every_arm(tmp_path: Path) -> None:
    out = tmp_path / "study"
    first = study("--size", "tiny", "--seeds", "1", "--arms", "AF", "--out", str(out))
    assert first.returncode == 0, first.stderr[-2000:]
    report = json.loads((out / "report.json").read_text())
    assert set(report["arms"]) == {"A", "F"}
    assert report["study"]["clips"] == "synthetic"
    assert "Clips: synthetic" in first.stdout
    assert all(len(run["seeds"]) == 1 for run in report["arms"].values())
    # Ended between two arms: what is whole stays as it is.
    kept = (out / "arms" / "A-0.json").read_bytes()
    (out / "arms" / "F-0.json").unlink()
    second = study("--size", "tiny", "--seeds", "1", "--arms", "AF", "--out", str(out))
    assert second.returncode == 0, second.stderr[-2000:]
    assert "arm F, seed 0" in second.stderr
    assert "arm A" not in second.stderr
    assert "teacher: step" not in second.stderr
    assert (out / "arms" / "A-0.json").read_bytes() == kept
    again = json.loads((out / "report.json").read_text())
    assert again["arms"]["F"]["metrics"] == report["arms"]["F"]["metrics"]
    other = study("--size", "cpu", "--out", str(out))
    assert other.returncode == 2
    assert "name another folder" in other.stderr
