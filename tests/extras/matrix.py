"""Installs the bare core and each extra alone, imports all modules that each owns, and runs every program there.

    python tests/extras/matrix.py [--wheels FOLDER] [SET ...]

`--wheels` keeps the fetched wheels, or reuses those kept before. Without it they are deleted at the end.
`make extras` runs it. The environments share nothing but the wheels, which are fetched once. Exit status 1 if a set
fails; the output names it. (`loaders` is omitted: its packages pin an older numpy than the tested set has.)
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import installations
from commands import CHECKS, Materials
from installation import Installation, MatrixError

_PIP = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check"]
# The download of all wheels takes the longest.
_PIP_S = 1200
_IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(f"{name} cannot be imported: {error}")
"""


def fetch(sets: list[str], wheels: Path) -> None:
    """Build this checkout's wheel, and fetch those that the sets need, in the tested versions."""
    extras = ",".join(name for name in sets if name != installations.CORE)
    # Wheels of the dependencies were fetched by an earlier run; the checkout may have changed since.
    options = ("--no-deps",) if wheels.exists() else ("-c", installations.ROOT / "constraints.txt")
    _pip("wheel", "-w", wheels, *options, f"{installations.ROOT}[{extras}]")


def install(name: str, wheels: Path, folder: Path) -> Installation:
    """A new environment with one set and nothing else."""
    venv.create(folder, symlinks=True)
    extra = "" if name == installations.CORE else f"[{name}]"
    # Without the index, so that no set gets a package that was not fetched for one of them.
    source = ("--no-index", "--find-links", wheels, "-c", installations.ROOT / "constraints.txt")
    _pip("--python", folder / "bin/python", "install", "--no-compile", *source, f"vdot-data{extra}")
    (folder / "empty").mkdir()
    return Installation(name, folder)


def _pip(*arguments: object) -> None:
    command = [*_PIP, *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_S, check=False)
    if process.returncode:
        raise MatrixError(f"{' '.join(command)}\n{process.stderr[-3000:]}")


def check(installation: Installation, materials: Materials) -> None:
    """Check everything that an installation must be able to do. Raises `MatrixError` if it fails."""
    process = installation.python("-c", _IMPORT_ALL, *installations.importable(installation.name))
    if process.returncode or process.stdout:
        raise MatrixError(f"{process.stdout}{process.stderr[-3000:]}")
    for program in ("vdot-data", "vdot-train", "vdot-bench"):
        installation.run(program, "--help")
    CHECKS[installation.name](installation, materials)


def main(sets: list[str], wheel_folder: Path | None) -> int:
    """Check these sets; returns the exit status."""
    failures = 0
    with tempfile.TemporaryDirectory(prefix="vdot-extras-") as scratch:
        folder, started = Path(scratch), time.monotonic()
        wheels = wheel_folder or folder / "wheels"
        fetch(sets, wheels)
        _print_line(f"wheels   {time.monotonic() - started:6.0f} s")
        with Materials(folder / "materials") as materials:
            for name in sets:
                started = time.monotonic()
                try:
                    installation = install(name, wheels, folder / name)
                    installed = time.monotonic()
                    check(installation, materials)
                    check_s = time.monotonic() - installed
                    _print_line(f"{name:8} {installed - started:6.0f} s to install, {check_s:.0f} s to check: ok")
                except (MatrixError, subprocess.TimeoutExpired) as error:
                    failures += 1
                    _print_line(f"{name:8} FAILED after {time.monotonic() - started:.0f} s: {error}")
                shutil.rmtree(folder / name, ignore_errors=True)
    return 1 if failures else 0


def _print_line(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="a folder, kept")
    parser.add_argument("sets", nargs="*", help=f"of {', '.join(installations.OWNS)}; all of them if none is named")
    arguments = parser.parse_args()
    if unknown := {*arguments.sets} - {*installations.OWNS}:
        parser.error(f"there is no set {sorted(unknown)[0]!r}")
    # The output of the programs must not depend on the terminal's size and colours.
    os.environ |= {"COLUMNS": "200", "NO_COLOR": "1"}
    sys.exit(main(arguments.sets or [*installations.OWNS], arguments.wheels))
