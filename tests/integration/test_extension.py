"""Tests the example package of docs/extending.md exactly as printed: it is built, installed and run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import program
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with the installed package of docs/extending.md."""
    page = (ROOT / "docs/extending.md").read_text()
    files = {}
    for kind, name in (("toml", "pyproject.toml"), ("python", "brightest.py")):
        (files[name],) = re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL)
    assert sum(len(text.splitlines()) for text in files.values()) < 30
    return program.install_files(files, tmp_path_factory.mktemp("extension"))


@pytest.mark.slow
@pytest.mark.long
def test_a_package_of_somebody_else_makes_tracks_and_signals(
    vdot: Any, recipe: Any, small_folder: Path, package: Path, tmp_path: Path
) -> None:
    out = program.Out(tmp_path / "out")
    recipe_file = recipe(stages=[["scribble", "brightest"]], rules={"glaring": "bright_share > 0.9"})
    process = vdot(
        *("ingest", small_folder / "2.mp4", "--out", out.url, "--recipe", recipe_file, "--cpus", 1, "--json"),
        env={"PYTHONPATH": str(package)},
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["clips"] == {"kept": {"": 1}}
    (row,) = out.query("SELECT * FROM clips")
    assert 0 <= row["bright_share"] < 0.9
    assert ("brightest", "1") in {(entry["name"], entry["version"]) for entry in row["lineage"]}
    assert vdot("verify", out.url, env={"PYTHONPATH": str(package)}).returncode == 0
    (members,) = out.samples().values()
    assert "brightest.mp4" in members


def test_without_the_package_its_name_is_unknown(vdot: Any, recipe: Any, small_folder: Path, tmp_path: Path) -> None:
    recipe_file = recipe(stages=[["scribble", "brightest"]])
    process = vdot("ingest", small_folder / "2.mp4", "--out", tmp_path / "out", "--recipe", recipe_file)
    assert process.returncode == 2
    assert "no annotator named 'brightest'" in process.stderr
