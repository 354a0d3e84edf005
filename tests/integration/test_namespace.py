"""Tests that the installed wheel works beside folders of the same names, and that trainers import nothing heavy."""

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
PACKAGES = ("vdot_data", "pipeline", "annotators", "filters", "training", "benchmarks")


@pytest.fixture(scope="module")
def wheel_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the built wheel installed in it."""
    pytest.importorskip("hatchling")
    folder: Path = tmp_path_factory.mktemp("wheel")
    return program.install(ROOT, folder / "site")


@pytest.mark.slow
@pytest.mark.long
def test_the_wheel_works_in_a_folder_that_has_rooms_of_the_same_names(
    wheel_folder: Path, vdot: Any, recipe: Any, small_folder: Path, tmp_path: Path
) -> None:
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(f"raise ImportError('this {package} is the user own')\n")
    out = program.Out(tmp_path / "out")
    process = vdot(
        *("ingest", small_folder / "2.mp4", "--out", out.url, "--recipe", recipe(), "--cpus", 1, "--json"),
        command=(sys.executable, wheel_folder / "bin" / "vdot-data"),
        env={"PYTHONPATH": str(wheel_folder)},
        cwd=tmp_path,
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["clips"] == {"kept": {"": 1}}
    assert {row["version"] for row in out.query("SELECT version FROM runs")} == {"0.1.0"}


def test_the_wheel_is_what_ran(wheel_folder: Path, tmp_path: Path) -> None:
    script = "import pipeline; print(pipeline.__file__)"
    file = run_python(script, tmp_path, PYTHONPATH=str(wheel_folder))
    assert Path(file).is_relative_to(wheel_folder)


def test_the_wheel_holds_the_five_rooms_and_nothing_else(wheel_folder: Path) -> None:
    names = {path.name for path in wheel_folder.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {*PACKAGES, "bin"}
    assert (wheel_folder / "pipeline" / "recipe" / "default.yaml").is_file()
    assert not list(wheel_folder.rglob("test_*.py"))


def run_python(script: str, cwd: Path, **env: str) -> str:
    """The output of a script, run by a Python that does not search the current folder for modules."""
    command = [sys.executable, "-P", "-c", script]
    process = subprocess.run(command, cwd=cwd, env=os.environ | env, capture_output=True, text=True, check=True)
    return process.stdout.strip()


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
    assert json.loads(run_python(script, tmp_path)) == []
