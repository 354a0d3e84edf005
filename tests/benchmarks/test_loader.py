"""Tests that the comparison of loaders gives figures for an installed one, and a reason for a missing one."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.loaders.job import make_payload, read_indices
from benchmarks.loaders.loader import measure
from pipeline.errors import UsageError


def test_a_payload_is_the_same_each_time_and_says_its_index() -> None:
    assert make_payload(100, 7) == make_payload(100, 7) != make_payload(100, 8)
    assert len(make_payload(100, 7)) == 100
    assert int.from_bytes(make_payload(100, 7)[:8], "little") == 7


def test_a_torn_index_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "seen").write_bytes(make_payload(8, 3) + make_payload(8, 5) + b"\1\2")
    assert list(read_indices(tmp_path / "seen")) == [3, 5]


def test_too_little_for_the_workers_is_refused() -> None:
    with pytest.raises(UsageError, match="two shards each"):
        measure(100, 1.0, 2, 1)


@pytest.mark.slow
@pytest.mark.long
def test_figures_or_a_reason() -> None:
    figures = measure(64, 4.0, 2, 1, ("webdataset", "litdata"))["loaders"]
    tars = figures["webdataset"]
    assert tars["reason"] is None
    assert tars["passes"]["in_process_copies"]["touched"]["samples_per_s"] > 0
    assert tars["passes"]["workers_2_copies"]["first_sample_s"] > 0
    assert tars["resume"]["at"] == 48
    assert tars["resume"]["in_process"]["same_order"]
    assert tars["resume"]["workers_2"]["same_order"]
    assert tars["kill"]["restart"]["same_order"]
    assert set(figures["litdata"]) == set(tars)
    if find_spec("litdata") is None:
        assert "No module named 'litdata'" in figures["litdata"]["reason"]
        assert figures["litdata"]["passes"] is None
