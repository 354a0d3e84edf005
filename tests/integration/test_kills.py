"""Tests that SIGKILLs at random moments change nothing, in a short form of `vdot-bench kills`."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_videos
import yaml

from benchmarks.ingest.kills import measure


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "nodes", "seed"),
    [
        (2, 1, 7),
        pytest.param(4, 1, 3, marks=pytest.mark.long),
        pytest.param(6, 2, 1, marks=pytest.mark.long),
    ],
    ids=["one-node", "one-node-more", "two-nodes"],
)
def test_killed_runs_end_as_an_undisturbed_one(small_folder: Path, kills: int, nodes: int, seed: int) -> None:
    recipe = yaml.safe_dump(small_videos.RECIPE | {"commit": {"shard_mb": 0.1, "every_s": 0.5}})
    result = measure(small_folder, kills, seed, nodes, recipe)
    assert result["problems"] == []
    assert result["clips"] == 7
    assert sum(result["kills"].values()) == kills
    if nodes > 1:
        assert result["kills"]["node"] > 0
