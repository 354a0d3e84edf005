"""The wheel works where it is installed, whatever folders lie around, and trainers import none of the bulk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import program
import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("pipeline", "annotators", "filters", "training", "benchmarks")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the built wheel in it."""
    pytest.importorskip("hatchling")
    folder: Path = tmp_path_factory.mktemp("wheel")
    return program.installed(ROOT, folder / "site")


@pytest.mark.slow
@pytest.mark.long
def test_the_wheel_works_in_a_folder_that_has_rooms_of_the_same_names(
    installed: Path, vdot: Any, recipe: Any, small: Path, tmp_path: Path
) -> None:
    for room in ROOMS:
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text(f"raise ImportError('this {room} is the user own')\n")
    out = program.Out(tmp_path / "out")
    done = vdot(
        *("ingest", small / "2.mp4", "--out", out.url, "--recipe", recipe(), "--cpus", 1, "--json"),
        command=(sys.executable, installed / "bin" / "vdot-data"),
        env={"PYTHONPATH": str(installed)},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["clips"] == {"kept": {"": 1}}
    assert {row["version"] for row in out.query("SELECT version FROM runs")} == {"0.1.0"}


def test_the_wheel_is_what_ran(installed: Path, tmp_path: Path) -> None:
    script = "import pipeline; print(pipeline.__file__)"
    where = python(script, tmp_path, PYTHONPATH=str(installed))
    assert Path(where).is_relative_to(installed)


def test_the_wheel_holds_the_five_rooms_and_nothing_else(installed: Path) -> None:
    found = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert found == {*ROOMS, "bin"}
    assert (installed / "pipeline" / "recipe" / "default.yaml").is_file()
    assert not list(installed.rglob("test_*.py"))


def python(script: str, cwd: Path, **env: str) -> str:
    """What a script prints, run in a Python of its own that does not look into the current folder for modules."""
    command = [sys.executable, "-P", "-c", script]
    done = subprocess.run(command, cwd=cwd, env=os.environ | env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_trainers_import_neither_ray_nor_a_decoder_of_wild_video(tmp_path: Path) -> None:
    names = [
        "training",
        "training.data.latents_file",
        "training.models.folder",
        "pipeline.formats.schema",
        "pipeline.catalog.catalog",
        "pipeline.formats.shards",
        "pipeline.storage.folder",
    ]
    script = f"""
import importlib, json, sys
for name in {names!r}:
    importlib.import_module(name)
print(json.dumps(sorted({{"ray", "cv2", "av", "decord", "torch", "ai_edge_litert"}} & set(sys.modules))))
"""
    assert json.loads(python(script, tmp_path)) == []
