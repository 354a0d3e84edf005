"""A dataset, selection, mixture and checkpoint of an older version: verified, resumed, streamed and trained on."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import older_data
import program
import pytest

from training import Stream


@pytest.fixture
def older(tmp_path: Path) -> Path:
    return older_data.copy(tmp_path / "older")


def test_a_dataset_is_verified_selected_from_and_mixed(vdot: Any, older: Path) -> None:
    verified = vdot("verify", older / "dataset", "--workers", 1)
    assert verified.returncode == 0, verified.stderr
    selected = vdot("select", older / "dataset", "--where", "scribble_density > 0", "--against", "lined", "--json")
    assert json.loads(selected.stdout)["against"] == {"name": "lined", "added": 0, "removed": 0}
    mixed = vdot("mix", older / "mixture.yaml", "--out", older / "again")
    assert mixed.returncode == 0, mixed.stderr
    before, after = (json.loads((older / name / "mixture.json").read_text()) for name in ("mixture", "again"))
    assert after["hash"] == before["hash"]


def test_a_mixture_is_streamed(older: Path) -> None:
    (step,) = islice(Stream(str(older / "mixture")), 1)
    batches = list(step)
    assert {batch.arrays["clip"].shape[2:] for batch in batches} == {(17, 96, 128)}


@pytest.mark.long
def test_an_ingest_goes_on_with_it(vdot: Any, recipe: Any, older: Path) -> None:
    out = program.Out(older / "dataset")
    before = out.samples()
    command = ("ingest", older / "videos", "--out", out.url, "--recipe", older / "recipe.yaml", "--cpus", 1, "--json")
    process = vdot(*command)
    assert process.returncode == 0, process.stderr
    # The files lie elsewhere now: their content is known, and nothing is annotated twice.
    assert json.loads(process.stdout)["done"] == {}
    assert out.samples() == before


@pytest.mark.long
def test_a_run_goes_on_from_its_checkpoint_and_is_exported(older: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training import commands

    monkeypatch.chdir(older)
    config = (older / "train.yaml").read_text().replace("steps: 2", "steps: 4")
    (older / "train.yaml").write_text(config)
    commands.teach(Path("train.yaml"), Path("run"), "latest")
    steps = [json.loads(line)["step"] for line in (older / "run/log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    commands.export(Path("run"), Path("export"))
    assert (older / "export/transformer/diffusion_pytorch_model.safetensors").is_file()
