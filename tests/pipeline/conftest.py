"""Fixtures of the data side's tests."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def datasets() -> ModuleType:
    """The helper module `dataset.py`, loaded by path because this folder is not on sys.path."""
    name = "vdot_tests_dataset"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("dataset.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def filled(datasets: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OUT to be copied, because encoding its clips takes half a second."""
    folder: Path = tmp_path_factory.mktemp("dataset")
    datasets.Dataset(str(folder / "out"), folder / "scratch").fill()
    return folder / "out"


@pytest.fixture
def dataset(datasets: Any, filled: Path, tmp_path: Path) -> Any:
    """A small real OUT on a disk; see `dataset.py`."""
    shutil.copytree(filled, tmp_path / "out")
    return datasets.Dataset(str(tmp_path / "out"), tmp_path / "scratch")
