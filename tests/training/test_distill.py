"""The training loop on a tiny model: what it learns from, that it goes on exactly, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import small_mixture
import tiny_model
import yaml

from pipeline.mixture import Step

pytestmark = pytest.mark.usefixtures("one_thread")

DISTILL = {
    "student": {"lr": 1e-3},
    "critic": {"lr": 1e-3},
    "student_every": 2,
    "gan": {"start": 0, "width": 16},
    "average": {"start": 0, "decay": 0.5},
}
TEACH = {"optimizer": {"lr": 1e-3}, "average": {"start": 0, "decay": 0.5}}
COMMON = {"seed": 3, "steps": 4, "saves": {"every": 2, "keep": 2}, "evaluation": {"every": 0}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_mixture.make(tmp_path_factory.mktemp("data"), 6, step=Step(2))


@pytest.fixture
def config(model: Path, mixture: Path, tmp_path: Path) -> Any:
    """Writes a configuration and says where."""

    def write(method: dict[str, Any], name: str = "config", **changes: Any) -> Path:
        told: dict[str, Any] = {
            "model": {"folder": str(model), "dtype": "float32", "text_tokens": 8},
            "data": {"mixture": str(mixture), "form": "pixels", "workers": 0},
            **COMMON,
            **method,
        }
        for key, value in changes.items():
            told[key] = told[key] | value if isinstance(value, dict) and isinstance(told.get(key), dict) else value
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(told))
        return file

    return write


def train(*arguments: Any, processes: int = 1, status: int = 0, limit: float = 120) -> str:
    """Run the command line and give what it said on stderr."""
    begin = [sys.executable] if processes == 1 else [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [*begin, "-m", "training.cli", *map(str, arguments)],
        capture_output=True, text=True, env=environment, timeout=limit, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr[-3000:]
    return done.stderr


def stored(run: Path, step: int) -> dict[str, Any]:
    """All tensors of a checkpoint, whole."""
    import torch

    from training.checkpoint import HuggingFaceStorageReader, dcp

    at = run / f"checkpoints/step-{step:07d}"
    reader = HuggingFaceStorageReader(str(at))
    shapes = {name: one.size for name, one in reader.read_metadata().state_dict_metadata.items()}
    found = {name: torch.empty(size) for name, size in shapes.items()}
    dcp.load(found, storage_reader=HuggingFaceStorageReader(str(at)))
    return found


def logged(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def equal(one: dict[str, Any], other: dict[str, Any], tolerance: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name in one:
        difference = float((one[name] - other[name]).abs().max())
        assert difference <= tolerance * max(1.0, float(one[name].abs().max())), (name, difference)


@pytest.mark.parametrize("method", ["teach", "distill", "lora"])
def test_two_and_two_steps_are_four(method: str, config: Any, tmp_path: Path) -> None:
    told = TEACH if method == "teach" else DISTILL
    model = {"model": {"lora_rank": 4}} if method == "lora" else {}
    command = "teach" if method == "teach" else "distill"
    train(command, config(told, **model), "--out", tmp_path / "whole")
    train(command, config(told, **model, steps=2), "--out", tmp_path / "parts")
    train(command, config(told, **model), "--out", tmp_path / "parts", "--resume", "latest")
    equal(stored(tmp_path / "whole", 4), stored(tmp_path / "parts", 4))
    lines = [
        [{k: v for k, v in one.items() if "time" not in k} for one in logged(tmp_path / run)]
        for run in ("whole", "parts")
    ]
    assert lines[0] == lines[1]
    assert [one["step"] for one in lines[0]] == [1, 2, 3, 4]


@pytest.mark.parametrize("method", ["teach", "distill", "lora"])
def test_two_processes_are_one(method: str, config: Any, tmp_path: Path) -> None:
    told = TEACH if method == "teach" else DISTILL
    model = {"model": {"lora_rank": 4}} if method == "lora" else {}
    command = "teach" if method == "teach" else "distill"
    file = config(told, **model)
    train(command, file, "--out", tmp_path / "one")
    train(command, file, "--out", tmp_path / "two", processes=2)
    # AdamW divides by the square root of tiny squares: sums in another order are seen in single weights.
    equal(stored(tmp_path / "one", 4), stored(tmp_path / "two", 4), 1e-3)
    for one, two in zip(logged(tmp_path / "one"), logged(tmp_path / "two"), strict=True):
        for name in one:
            if isinstance(one[name], float) and "time" not in name:
                assert two[name] == pytest.approx(one[name], rel=2e-3, abs=1e-5), name
