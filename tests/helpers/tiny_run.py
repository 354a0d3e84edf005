"""Runs `vdot-train` on a tiny model, and reads checkpoints and logs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from training import commands

DISTILL = {
    "student": {"lr": 1e-3},
    "critic": {"lr": 1e-3},
    "student_every": 2,
    "gan": {"start": 0, "width": 16, "lr": 1e-3},
    "average": {"start": 0, "decay": 0.5},
}
TEACH = {"optimizer": {"lr": 1e-3}, "average": {"start": 0, "decay": 0.5}}
COMMON = {"seed": 3, "steps": 4, "saves": {"every": 2, "keep": 2}, "evaluation": {"every": 0}}


def train(command: str, file: Path, out: Path, resume: str | None = None) -> None:
    """Run a command of `vdot-train` in this process."""
    {"teach": commands.teach, "distill": commands.distill}[command](file, out, resume)


def processes(count: int, *arguments: Any) -> None:
    """Run `vdot-train` with torchrun in this many processes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [*torchrun, "-m", "training.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]


def options(method: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The command, its configuration, and changes to the model's configuration."""
    if method == "teach":
        return "teach", TEACH, {}
    return "distill", DISTILL, {"model": {"lora_rank": 4}} if method == "lora" else {}


LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("teach", "lora")]


def stored(out: Path, step: int) -> dict[str, Any]:
    """All tensors of a checkpoint, unsharded."""

    from training.trainer.checkpoint import HuggingFaceStorageReader, dcp

    folder = out / f"checkpoints/step-{step:07d}"
    reader = HuggingFaceStorageReader(str(folder))
    shapes = {name: metadata.size for name, metadata in reader.read_metadata().state_dict_metadata.items()}
    tensors = {name: torch.empty(size) for name, size in shapes.items()}
    dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))
    return tensors


def logged(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def equal(tensors: dict[str, Any], expected: dict[str, Any], tolerance: float = 0.0) -> None:
    assert tensors.keys() == expected.keys()
    for name in tensors:
        difference = float((tensors[name] - expected[name]).abs().max())
        assert difference <= tolerance * max(1.0, float(tensors[name].abs().max())), (name, difference)
