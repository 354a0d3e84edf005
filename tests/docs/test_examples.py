"""Tests that each example runs after `make demo`, and shows what its docstring says."""

from __future__ import annotations

import os
import re
import shutil
import sys
from typing import Any

import notebook_program
import program
import pytest
from documents import ROOT

SCRIPTS = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
OUTPUT = {
    "own_annotator.py": [
        r"(?m)^[0-9a-f]{8} kept: saturation 0\.\d\d, change \d+\.\d$",
        r"change is \(\d+, \d+, \d+, 3\)",
    ],
    "thresholds.py": [
        r"(?m)^blurred: coalesce\(sharpness, 1\) < [\d.]+: .*6 kept",
        r"without the rule too_small, which",
    ],
    "training_loop.py": [
        r"(?s)^.*first run\nposition 0: scribble.*position 7.*second run.*?\nposition 8:.*position 15"
    ],
    "vace_conditions.py": [
        r"(?s)\nscribble: clip \(1, 3, .*?, video \(1, 3, .*?0 references\ncontext \(1, 96, \d+, \d+, \d+\)",
        r"(?s)\nfirstframe: clip \(1, 3, .*?mask \(1, 1, .*?0 references\ncontext \(1, 96, \d+, \d+, \d+\)",
        r"(?s)\nreference_scribble: clip .*?[1-9] references\ncontext \(1, 96, \d+, \d+, \d+\)",
        r"first +scribble +\d+\.\d %\n",
    ],
    "verdicts.py": [r"damaged\.mp4 +failed", r"6 clips kept", r"2 clips rejected too_small", r"tracks .*pose"],
}
"""Script -> what it prints."""

ARGUMENTS = {
    "training_loop.py": ("demo/copy", "scribble"),
    "vace_conditions.py": ("demo/out", "file://{home}/demo/copy"),
}
"""A script that makes a mixture -> other datasets for it, one of them by a URL."""


@pytest.mark.long
@pytest.mark.parametrize("script", SCRIPTS)
def test_an_example_shows_what_it_says(script: str, workplace: Any) -> None:
    workplace.restore("demo")
    environment = {}
    if script == "own_annotator.py":
        package = program.install(workplace.home / "examples/extension", workplace.home / "site")
        environment["PYTHONPATH"] = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])
    output = workplace.run(sys.executable, f"examples/{script}", **environment)
    for pattern in OUTPUT[script]:
        assert re.search(pattern, output), f"{pattern} is not in\n{output}"


@pytest.mark.long
@pytest.mark.parametrize("script", ARGUMENTS)
def test_an_example_takes_other_datasets_after_its_own(script: str, workplace: Any) -> None:
    workplace.restore("demo")
    demo = workplace.home / "demo"
    shutil.copytree(demo / "out", demo / "copy")
    workplace.run(sys.executable, f"examples/{script}")
    arguments = [argument.format(home=workplace.home) for argument in ARGUMENTS[script]]
    output = workplace.run(sys.executable, f"examples/{script}", *arguments)
    for pattern in OUTPUT[script]:
        assert re.search(pattern, output), f"{pattern} is not in\n{output}"


@pytest.mark.long
def test_the_notebook_runs(workplace: Any) -> None:
    workplace.restore("demo")
    output = workplace.run(sys.executable, notebook_program.__file__, "explore.ipynb", cwd="examples")
    for pattern in (r"too_small +2", r"'rule': 'too_small'", r"a picture of \d{5,} bytes", r"# 1\n", r"'scribble', 6"):
        assert re.search(pattern, output), f"{pattern} is not in\n{output}"


def test_the_notebook_holds_no_output() -> None:
    """Outputs change with each run, and pictures are large."""
    text = (ROOT / "examples/explore.ipynb").read_text()
    assert text.count('"outputs": []') == text.count('"cell_type": "code"') > 0
