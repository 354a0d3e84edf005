"""The package that docs/extending.md shows is built, installed and run, word for word."""

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
    pytest.importorskip("setuptools")
    folder: Path = tmp_path_factory.mktemp("extension")
    page = (ROOT / "docs/extending.md").read_text()
    source = folder / "source"
    source.mkdir()
    for kind, name in (("toml", "pyproject.toml"), ("python", "brightest.py")):
        (block,) = re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL)
        (source / name).write_text(block)
    assert sum(len(path.read_text().splitlines()) for path in source.iterdir()) < 30
    return program.installed(source, folder / "site")


@pytest.mark.slow
@pytest.mark.long
def test_a_package_of_somebody_else_makes_tracks_and_signals(
    vdot: Any, recipe: Any, small: Path, package: Path, tmp_path: Path
) -> None:
    out = program.Out(tmp_path / "out")
    chosen = recipe(stages=[["scribble", "brightest"]], rules={"glaring": "bright_share > 0.9"})
    done = vdot(
        *("ingest", small / "2.mp4", "--out", out.url, "--recipe", chosen, "--cpus", 1, "--json"),
        env={"PYTHONPATH": str(package)},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["clips"] == {"kept": {"": 1}}
    (row,) = out.query("SELECT * FROM clips")
    assert 0 <= row["bright_share"] < 0.9
    assert ("brightest", "1") in {(made["name"], made["version"]) for made in row["lineage"]}
    assert vdot("verify", out.url, env={"PYTHONPATH": str(package)}).returncode == 0
    (members,) = out.samples().values()
    assert "brightest.mp4" in members


def test_without_the_package_its_name_is_unknown(vdot: Any, recipe: Any, small: Path, tmp_path: Path) -> None:
    chosen = recipe(stages=[["scribble", "brightest"]])
    done = vdot("ingest", small / "2.mp4", "--out", tmp_path / "out", "--recipe", chosen)
    assert done.returncode == 2
    assert "no annotator named 'brightest'" in done.stderr
