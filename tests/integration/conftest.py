"""Fixtures for tests of the complete program: the installed command, small videos, and a finished dataset of them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import small_videos
import yaml
from program import VDOT, Out, Vdot, cluster


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """A running Ray cluster of one CPU, for tests with many runs: joining it is faster than starting one each time."""
    with cluster(1, memory=4 * 10**9) as ray_cluster:
        yield ray_cluster.address


@pytest.fixture(scope="session")
def vdot(tmp_path_factory: pytest.TempPathFactory) -> Vdot:
    """`vdot(*arguments, env=..., timeout=...)` runs the installed command."""
    return Vdot(tmp_path_factory.mktemp("vdot"))


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`recipe(**changes)` writes a file with the fast recipe of these tests and the changes."""
    folder = tmp_path_factory.mktemp("recipes")

    def write(**changes: Any) -> Path:
        path = Path(tempfile.mkstemp(suffix=".yaml", dir=folder)[1])
        path.write_text(yaml.safe_dump(small_videos.RECIPE | changes))
        return path

    return write


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four small videos: seven clips."""
    folder: Path = tmp_path_factory.mktemp("small")
    for seed, shots in enumerate((2, 1, 3, 1), 1):
        small_videos.write(folder / f"{seed}.mp4", seed, shots=shots)
    return folder


@pytest.fixture(scope="session")
def local_dataset(vdot: Vdot, recipe: Any, small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Out:
    """The four small videos as a dataset on this disk, made by one worker per stage."""
    out = Out(tmp_path_factory.mktemp("local") / "out")
    # Without --address a run starts its own Ray, whatever cluster Ray itself would find.
    no_cluster = {"RAY_ADDRESS": "127.0.0.1:1"}
    process = vdot(
        "ingest", small_folder, "--out", out.url, "--recipe", recipe(), "--cpus", 1, "--json", env=no_cluster
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["clips"] == {"kept": {"": 7}}
    return out


def pytest_sessionfinish() -> None:
    """Runs that failed may have left a process that waits for its end."""
    for child in psutil.Process().children():
        # It may end by itself meanwhile.
        with suppress(psutil.NoSuchProcess):
            if child.name() == VDOT.name:
                child.kill()
