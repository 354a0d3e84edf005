"""One installed set: its Python and its programs, run as a user runs them, in an empty folder."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

# Longer than any command here takes on a machine that is busy with other work.
_LIMIT_S = 300


class MatrixError(Exception):
    """A set does not do what it must; the message says what was run and what it answered."""


@dataclass(frozen=True)
class Installation:
    """A virtual environment with the core and at most one extra."""

    name: str
    folder: Path

    def python(self, *arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Its Python, which sees nothing of the checkout."""
        return self._start(self.folder / "bin/python", "-I", *arguments, env=env)

    def run(self, program: str, *arguments: object, env: dict[str, str] | None = None) -> str:
        """Run a program that must succeed; what it wrote to stdout."""
        done = self._start(self.folder / "bin" / program, *arguments, env=env)
        if done.returncode:
            raise MatrixError(_answer(done))
        return done.stdout

    def refused(self, program: str, *arguments: object, words: str, env: dict[str, str] | None = None) -> None:
        """Run a program that must say why it cannot, in one sentence with these words, and exit with status 2."""
        done = self._start(self.folder / "bin" / program, *arguments, env=env)
        lines = done.stderr.strip().splitlines()
        sentence = len(lines) == 1 and lines[0].startswith(f"{program}: ") and words in lines[0]
        if done.returncode != 2 or not sentence or done.stdout:
            raise MatrixError(f"one sentence with {words!r} and exit status 2 were expected\n{_answer(done)}")

    def _start(self, *command: object, env: dict[str, str] | None) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return subprocess.run(
            [str(part) for part in command],
            cwd=self.folder / "empty",
            env=inherited | {"RAY_ADDRESS": "127.0.0.1:1"} | (env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )


def _answer(done: subprocess.CompletedProcess[str]) -> str:
    return f"{' '.join(done.args)} ended with {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
