"""The folder of a reader who has run `make demo`, in which pages and examples run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from documents import ROOT

# The longest that a page may take: the demonstration of the trainer, on busy cores.
LIMIT_S = 1800


@dataclass(frozen=True)
class Workplace:
    """The reader's folder `home`, always the same one, as catalogs name sources by absolute paths, and copies of what
    it held at some time."""

    folder: Path

    @property
    def home(self) -> Path:
        """The current folder of the reader."""
        return self.folder / "home"

    def save(self, state: str) -> None:
        """Keep a copy of the folder under a name."""
        shutil.copytree(self.home, self._copy(state), symlinks=True)

    def has(self, state: str) -> bool:
        """Whether there is a copy under this name."""
        return self._copy(state).is_dir()

    def restore(self, state: str) -> None:
        """Make the folder what it was when it was saved."""
        shutil.rmtree(self.home)
        shutil.copytree(self._copy(state), self.home, symlinks=True)

    def run(self, *command: object, cwd: str = ".", stdin: str = "", log: str | None = None, **environment: str) -> str:
        """Run a command there, as in an activated environment, and return its stdout; it must succeed.

        `log`: a file there for its stderr.
        """
        tools = Path(sys.executable).parent
        process = subprocess.run(
            [str(part) for part in command],
            cwd=self.home / cwd,
            # Programs start a Ray of their own, whatever cluster Ray itself would find.
            env={
                **os.environ,
                "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
                "RAY_ADDRESS": "127.0.0.1:1",
                # As wide as the tables that pages show.
                "COLUMNS": "72",
                "VDOT_SCRATCH": str(self.folder),
                **environment,
            },
            input=stdin,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert process.returncode == 0, f"{process.stdout[-3000:]}\n{process.stderr[-6000:]}"
        if log is not None:
            (self.home / log).write_text(process.stderr)
        return process.stdout

    def _copy(self, state: str) -> Path:
        return self.folder / "states" / state.replace("/", "_")


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A `Workplace` with the state "demo": the demonstration has run and printed `demo.txt` and, to stderr, `demo.log`;
    the examples and the environment are there."""
    place = Workplace(tmp_path_factory.mktemp("reader"))
    place.home.mkdir()
    shutil.copytree(ROOT / "examples", place.home / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    (place.home / ".venv").symlink_to(sys.prefix)
    output = place.run(sys.executable, "-m", "pipeline.cli.demo", "demo", log="demo.log")
    (place.home / "demo.txt").write_text(output)
    place.save("demo")
    return place
