"""Tests an annotator of several clips a call through Ray: one clip kills every worker, and takes no other along."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import program
import pytest
import small_videos

PROJECT = """
[project]
name = "together"
version = "1"
[project.entry-points."vdot_data.annotators"]
together = "together:Together"
[tool.setuptools]
py-modules = ["together"]
"""
# The reddest clip ends its worker.
MODULE = '''
"""Measures several clips in one call."""

import os

from vdot_data import Annotation, Annotator, Signal


class Together(Annotator):
    """Measures how red clips are, and counts those of a call."""

    name, version, clips_per_call = "together", "1", 3
    signals = {"red": Signal("0..255", "mean of red"), "together": Signal("count", "clips in the call", "int")}

    def __call__(self, frames, fps):
        return self._measure(frames, 1)

    def annotate_clips(self, clips):
        return [self._measure(clip.frames, len(clips)) for clip in clips]

    def _measure(self, frames, count):
        if frames[..., 0].mean() > 225:
            os._exit(1)
        return Annotation(signals={"red": float(frames[..., 0].mean()), "together": count})
'''


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with the installed package."""
    files = {"pyproject.toml": PROJECT, "together.py": MODULE}
    return program.install_files(files, tmp_path_factory.mktemp("together"))


@pytest.mark.slow
@pytest.mark.long
def test_the_other_clips_of_a_call_are_kept(vdot: Any, recipe: Any, package: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(6):
        red = 240 if number == 2 else 20 + 10 * number
        small_videos.write(videos / f"{number}.mp4", number, tint=(red, 100, 60))
    out = program.Out(tmp_path / "out")
    recipe_file = recipe(stages=[["together"]], rules={}, tasks={})
    environment = {"PYTHONPATH": str(package)}
    process = vdot("ingest", videos, "--out", out.url, "--recipe", recipe_file, "--cpus", 1, "--json", env=environment)
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["clips"] == {"kept": {"": 5}, "failed": {"WORKER_DIED": 1}}
    rows = out.query("SELECT source_uri, status, code, together FROM clips")
    assert {Path(row["source_uri"]).name for row in rows if row["status"] == "failed"} == {"2.mp4"}
    assert max(row["together"] for row in rows if row["status"] == "kept") > 1
    assert vdot("verify", out.url, env=environment).returncode == 0


@pytest.mark.slow
@pytest.mark.long
def test_stored_clips_are_annotated_together(
    local_dataset: program.Out, vdot: Any, package: Path, tmp_path: Path
) -> None:
    shutil.copytree(local_dataset.url, tmp_path / "out")
    out = program.Out(tmp_path / "out")
    environment = {"PYTHONPATH": str(package)}
    process = vdot("annotate", out.url, "--with", "together", "--cpus", 1, "--json", env=environment)
    assert process.returncode == 0, process.stderr
    rows = out.query("SELECT together FROM clips WHERE layer = 'together' AND status = 'kept'")
    assert len(rows) == 7
    assert max(row["together"] for row in rows) == 3
    assert vdot("verify", out.url, env=environment).returncode == 0
