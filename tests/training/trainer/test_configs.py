"""Configurations: the ready-made ones are valid, and each mistake gets a sentence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

import training
from pipeline.errors import UsageError
from training import config

READY = sorted((Path(training.__path__[0]) / "configs").glob("*.yaml"))
MINIMAL: dict[str, Any] = {
    "model": {"folder": "m"}, "data": {"mixture": "x"}, "steps": 1, "student": {"lr": 1}, "critic": {"lr": 1},
}  # fmt: skip


def read(folder: Path, settings: Any) -> config.Distill:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(settings))
    return config.load(file, config.Distill)


@pytest.mark.parametrize("file", READY, ids=lambda file: file.stem)
def test_the_ready_ones_are_valid_and_say_whether_they_ran(file: Path) -> None:
    config.load(file, config.Teach if "teach" in file.stem else config.Distill)
    assert "NEVER RUN" in file.read_text()


def test_there_are_ready_ones() -> None:
    assert {file.stem for file in READY} >= {"vace-1.3b", "vace-1.3b-lora", "vace-14b-lora", "vace-1.3b-teach"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stepz": 3}, "stepz: there is no such key; did you mean 'steps'"),
        ({"schedule": {"steps": 0}}, "schedule: .* 1 to 1000 steps"),
        ({"levels": {"low": 990.0}}, "levels: .*low < high"),
        ({"transport": {"epsilon": 0.0}}, "transport: .*epsilon from 0.001"),
        ({"gan": {"ratoi": 1}}, "gan.ratoi: there is no such key; did you mean 'ratio'"),
        ({"transport": {"epsilom": 1}}, "transport.epsilom: there is no such key; did you mean 'epsilon'"),
        ({"gan": {"ratio": -1}}, "gan.ratio: must be greater than 0"),
        ({"data": {"mixture": "x", "size": {"frames": 17, "height": 64, "width": 64}}}, "form: pixels"),
        (
            {"data": {"mixture": "x", "form": "pixels", "size": {"frames": 16, "height": 64, "width": 64}}},
            "4n . 1 frames",
        ),
        ({"objective": "ot"}, "objective: must be 'combined', 'per_frame' or 'published'"),
        ({"model": {"folder": "m", "student": "s", "lora_rank": 4}}, "no other `student` with `lora_rank`"),
        ({"objective": "published", "student_every": 2}, "alternate"),
        ({"objective": "published"}, "has no R1 and R2"),
        ({"schedule": {"shift": ".inf"}}, "schedule"),
        ({"schedule": {"shift": math.inf}}, "schedule.shift: .*finite number"),
        ({"teacher_cfg": math.inf}, "teacher_cfg: .*finite number"),
        ({"student": {"lr": math.nan}}, "student.lr: .*finite number"),
        ({"gan": {"ratio": math.inf}}, "gan.ratio: .*finite number"),
        ({"transport": {"rho": math.inf}}, "transport.rho: .*finite number"),
        ({"transport": {"rho": 1e9}}, "transport: .*up to 1e.06"),
        ({"levels": {"shift": math.nan}}, "levels.shift: .*finite number"),
        ({"model": {"folder": "m", "negative_prompt": "\ud800"}}, "model.negative_prompt: .*surrogates"),
        ({"steps": "many"}, "steps: expected a whole number; found 'many'"),
        ({"steps": 10**19}, "steps: must be less than or equal to 1000000000000"),
        ({"data": {"mixture": "x", "workers": 300}}, "data.workers: must be less than or equal to 128"),
    ],
)
def test_what_is_wrong_gets_a_sentence(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        read(tmp_path, MINIMAL | change)


def test_a_configuration_of_the_other_kind_is_told_as_one(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    teach_settings = {name: value for name, value in MINIMAL.items() if name not in ("student", "critic")} | {
        "optimizer": {"lr": 1}
    }
    for settings, kind, message in (
        (MINIMAL, config.Teach, "of `distill`"),
        (teach_settings, config.Distill, "of `teach`"),
    ):
        file.write_text(yaml.safe_dump(settings))
        with pytest.raises(UsageError, match=f"is a configuration {message}"):
            config.load(file, kind)


def test_what_may_change_on_resume(tmp_path: Path) -> None:
    stored = read(tmp_path, MINIMAL).model_dump(mode="json")
    free = {"steps": 9, "saves": {"every": 3}, "model": {"folder": "elsewhere", "activation_checkpointing": False}}
    assert config.describe_changes(read(tmp_path, MINIMAL | free | {"data": {"mixture": "moved"}}), stored) == ""
    changed = read(tmp_path, MINIMAL | {"student": {"lr": 0.5}, "transport": None})
    assert "student.lr: 1.0, now 0.5; " in config.describe_changes(changed, stored)
    assert "transport.weight: 0.8, now None" in config.describe_changes(changed, stored)
    assert (
        config.describe_changes(read(tmp_path, MINIMAL | {"schedule": {"shift": 8}}), stored)
        == "schedule.shift: 5.0, now 8.0"
    )
