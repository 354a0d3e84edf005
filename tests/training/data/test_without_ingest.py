"""A trainer needs only `pip install 'vdot-data[train]'`, without the dependencies of ingest and curation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_run import DISTILL, TEACH

ABSENT = ("cv2", "duckdb", "ray", "onnxruntime")

# Python runs a module of this name first, in the loader's worker processes too. A name that maps to None in
# `sys.modules` cannot be imported, and `find_spec` does not find it.
BLOCKED = f"import sys\nsys.modules.update(dict.fromkeys({ABSENT!r}))\n"

IMPORTS = """
import importlib, pkgutil, training
for module in pkgutil.iter_modules(training.__path__, "training."):
    if module.name != "training.demo.__main__":
        importlib.import_module(module.name)
"""
COMMANDS = """
import sys
from training.cli import app
for line in sys.stdin:
    app(line.split(), standalone_mode=False)
"""


@pytest.fixture
def python(tmp_path: Path) -> Any:
    """A function that runs a program in a Python without those packages."""
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/sitecustomize.py").write_text(BLOCKED)
    path = [str(tmp_path / "bare"), str(Path(__file__).parents[3])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}

    def run(program: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program],
            input=stdin, capture_output=True, text=True, env=environment, timeout=400, check=False,
        )  # fmt: skip

    for name in ABSENT:
        assert "ModuleNotFoundError" in run(f"import {name}").stderr, name
    return run


def test_every_module_of_the_trainers_is_imported(python: Any) -> None:
    result = python(IMPORTS)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.long
def test_every_command_of_a_trainer_runs(python: Any, config: Any, tmp_path: Path) -> None:
    teach = config(TEACH, "teach", steps=1, saves={"every": 1}, evaluation={"every": 1}, data={"workers": 1})
    distill = config(DISTILL, "distill", steps=1, saves={"every": 1}, model={"lora_rank": 2})
    run, student, film = (tmp_path / name for name in ("run", "student", "film.mp4"))
    shape = "--frames 9 --height 32 --width 48"
    commands = f"""
        plan {teach} --teach
        teach {teach} --out {run}
        sample {run} --out {film} {shape}
        sample {run} --out {tmp_path}/again.mp4 --video {film} --mask {film} {shape}
        export {run} --out {tmp_path}/model
        distill {distill} --out {student}
        export {student} --lora --out {tmp_path}/adapters
        convert {tmp_path}/adapters/pytorch_lora_weights.safetensors --out {tmp_path}/original.safetensors
    """
    result = python(COMMANDS, "\n".join(line for line in commands.splitlines() if line.strip()))
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "original.safetensors").is_file()
    assert (tmp_path / "again.mp4").is_file()
