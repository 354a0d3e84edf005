"""Fixtures of the trainers' tests."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import small_mixture
from small_mixture import STEPS, seen

from training.stream import Stream


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch with one thread: beside another test its threads would wait for each other, ten times as long."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_mixture.make(tmp_path_factory.mktemp("stream"))


@pytest.fixture(scope="module")
def calm(mixed: Path) -> list[tuple[Any, ...]]:
    """What every micro-batch of the first steps holds, of one rank without workers."""
    return [seen(batch) for step in islice(Stream(str(mixed)), STEPS) for batch in step]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A mixture whose shards may be damaged."""
    return small_mixture.make(tmp_path)
