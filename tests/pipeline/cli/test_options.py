"""Answers to `--json` are one line of JSON, whatever a command returns."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest

from pipeline.cli.options import print_json


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    span: tuple[float, float | None] = (0.5, None)


@dataclass
class Result:
    parts: list[Part]
    damage: set[Part] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)


def test_results_become_objects_and_sets_sorted_lists(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(Result([Part("b"), Part("a")], {Part("d"), Part("c")}, {"kept": 2, "failed": 1}))
    line = capsys.readouterr().out
    assert line.endswith("\n")
    assert line.count("\n") == 1
    parts = {name: {"name": name, "span": [0.5, None]} for name in "abcd"}
    assert json.loads(line) == {
        "parts": [parts["b"], parts["a"]],
        "damage": [parts["c"], parts["d"]],
        "counts": {"kept": 2, "failed": 1},
    }


def test_what_has_no_form_in_json_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TypeError, match="object has no form in JSON"):
        print_json({"value": object()})
    assert capsys.readouterr().out == ""
