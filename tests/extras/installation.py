"""Runs the Python and the programs of an installed set as a user would, in an empty folder."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

# Longer than any of the commands takes on a busy machine.
_LIMIT_S = 300


class MatrixError(Exception):
    """A set does not work; the message has the command and its output."""


@dataclass(frozen=True)
class Installation:
    """A virtual environment with the core and at most one extra."""

    name: str
    folder: Path

    def python(self, *arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run its Python, isolated from the checkout."""
        return self._start(self.folder / "bin/python", "-I", *arguments, env=env)

    def run(self, program: str, *arguments: object, env: dict[str, str] | None = None) -> str:
        """Run a program that must succeed; returns its stdout."""
        process = self._start(self.folder / "bin" / program, *arguments, env=env)
        if process.returncode:
            raise MatrixError(_describe_process(process))
        return process.stdout

    def expect_refusal(self, program: str, *arguments: object, words: str, env: dict[str, str] | None = None) -> None:
        """Run a program that must refuse in one sentence with these words, and exit with status 2."""
        process = self._start(self.folder / "bin" / program, *arguments, env=env)
        lines = process.stderr.strip().splitlines()
        is_sentence = len(lines) == 1 and lines[0].startswith(f"{program}: ") and words in lines[0]
        if process.returncode != 2 or not is_sentence or process.stdout:
            raise MatrixError(
                f"one sentence with {words!r} and exit status 2 were expected\n{_describe_process(process)}"
            )

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


def _describe_process(process: subprocess.CompletedProcess[str]) -> str:
    return (
        f"{' '.join(process.args)} ended with {process.returncode}\n{process.stdout[-2000:]}\n{process.stderr[-3000:]}"
    )
