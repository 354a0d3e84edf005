"""Fixtures for the tests of the pipeline."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import small_dataset


@pytest.fixture(scope="session")
def filled_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset to copy from, because encoding its clips takes half a second."""
    folder: Path = tmp_path_factory.mktemp("dataset")
    small_dataset.Dataset(str(folder / "out"), folder / "scratch").fill()
    return folder / "out"


@pytest.fixture
def dataset(filled_dataset: Path, tmp_path: Path) -> Any:
    """A small real dataset on a disk; see `small_dataset.py`."""
    shutil.copytree(filled_dataset, tmp_path / "out")
    return small_dataset.Dataset(str(tmp_path / "out"), tmp_path / "scratch")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with videos and other files at three depths."""
    root = tmp_path / "tree"
    for name in ("b.mp4", "a/2.MOV", "a/1.mkv", "a/deep/x.webm", "a/notes.txt", "c.gif", "a/odd.bin"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root
