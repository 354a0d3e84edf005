"""Tests that CI fails a test or a module that skips itself, unless its reason is on the list."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import skips

HELPERS = Path(skips.__file__).parent
TESTS = """
import pytest

def test_that_skips():
    pytest.skip({reason!r})
"""
MODULE = """
import pytest

pytest.importorskip("a_package_that_nobody_has")
"""


def run_pytest(folder: Path, text: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on one file with the conftest of these tests."""
    shutil.copy(Path(__file__).with_name("conftest.py"), folder)
    (folder / "test_it.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-c", os.devnull, str(folder)]
    inherited = {name: value for name, value in os.environ.items() if name not in ("CI", "VDOT_TESTS_END")}
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=folder,
        env=inherited | {"PYTHONPATH": f"{HELPERS}{os.pathsep}{HELPERS.parents[1]}"} | env,
        check=False,
    )


@pytest.mark.parametrize("text", [TESTS.format(reason="no such program here"), MODULE])
def test_a_skip_is_a_failure_in_ci_alone(tmp_path: Path, text: str) -> None:
    process = run_pytest(tmp_path, text, CI="true")
    assert process.returncode != 0
    assert "CI allows only the skips listed in" in process.stdout
    assert "1 skipped" in run_pytest(tmp_path, text, CI="false").stdout


def test_a_reason_on_the_list_is_let_pass(tmp_path: Path) -> None:
    process = run_pytest(tmp_path, TESTS.format(reason="cannot mount a file system here: permission denied"), CI="true")
    assert (process.returncode, "1 skipped" in process.stdout) == (0, True)


def test_what_does_not_begin_in_time_is_named(tmp_path: Path) -> None:
    process = run_pytest(tmp_path, "def test_late():\n    pass\n", CI="true", VDOT_TESTS_END=str(time.time() - 1))
    assert process.returncode == 0
    assert "test_it.py::test_late" in process.stdout
    assert skips.OUT_OF_TIME in process.stdout
