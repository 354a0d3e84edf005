"""Runs the blocks of a page one after the other, as a reader types them: a program of its own.

`python page_program.py OUTPUTS < BLOCKS`: BLOCKS is a JSON list of {"place", "language", "file", "code"}. A block with
a file is written; Python shares one namespace; each block of shell is a shell of its own, which ends at the first
command that fails. What they print goes to OUTPUTS, a JSON list with a text per block. The exit status is 1 where
a block fails, and stderr says which.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any


def run_shell(place: str, code: str) -> str:
    """What a block of shell prints. Ends the program if the block fails."""
    process = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if process.returncode:
        sys.exit(f"{place}: exit status {process.returncode} of\n{code}\n\n{process.stdout[-5000:]}")
    return process.stdout


def write_file(path: Path, text: str) -> None:
    """Write a file, and the folder for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def main(outputs_file: Path) -> None:
    """Run the blocks on stdin."""
    names: dict[str, Any] = {"__name__": "__main__"}
    outputs = []
    for block in json.load(sys.stdin):
        output = ""
        if block["file"]:
            write_file(Path(block["file"]), block["code"])
        elif block["language"] == "python":
            with redirect_stdout(io.StringIO()) as stdout:
                exec(compile(block["code"], block["place"], "exec"), names)
            output = stdout.getvalue()
        else:
            output = run_shell(block["place"], block["code"])
        outputs.append(output)
    outputs_file.write_text(json.dumps(outputs))


if __name__ == "__main__":
    # As for a script of the reader's own: what is imported does not come from this folder.
    sys.path[0] = ""
    main(Path(sys.argv[1]))
