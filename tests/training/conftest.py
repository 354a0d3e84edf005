"""Fixtures for the tests of training."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import small_mixture
import tiny_model
import tiny_run
import yaml
from small_mixture import STEPS, seen

from pipeline.mixture.mixture import Step
from training.data.stream import Stream


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch with one thread: with parallel tests more threads would contend, and take ten times as long."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shared_mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_mixture.make(tmp_path_factory.mktemp("stream"))


@pytest.fixture(scope="module")
def reference_batches(shared_mixture: Path) -> list[tuple[Any, ...]]:
    """The contents of every micro-batch of the first steps, for one rank without workers."""
    return [seen(batch) for step in islice(Stream(str(shared_mixture)), STEPS) for batch in step]


@pytest.fixture
def private_mixture(tmp_path: Path) -> Path:
    """A mixture of the test's own, whose shards it may damage."""
    return small_mixture.make(tmp_path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_mixture.make(tmp_path_factory.mktemp("data"), 6, step=Step(2))


@pytest.fixture
def config(model: Path, mixture: Path, tmp_path: Path) -> Any:
    """A function that writes a configuration and returns its path."""

    def write(method: dict[str, Any], name: str = "config", **changes: Any) -> Path:
        settings: dict[str, Any] = {
            "model": {"folder": str(model), "dtype": "float32", "text_tokens": 8},
            "data": {"mixture": str(mixture), "form": "pixels", "workers": 0},
            **tiny_run.COMMON,
            **method,
        }
        for key, value in changes.items():
            settings[key] = (
                settings[key] | value if isinstance(value, dict) and isinstance(settings.get(key), dict) else value
            )
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(settings))
        return file

    return write
