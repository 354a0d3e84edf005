"""Exactly once, in its short form: SIGKILLs at random moments change nothing. The long form is `vdot-bench kills`."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_videos
import yaml

from benchmarks.kills import measure


@pytest.mark.slow
def test_killed_runs_end_as_an_undisturbed_one(small: Path) -> None:
    recipe = yaml.safe_dump(small_videos.RECIPE | {"commit": {"shard_mb": 0.1, "every_s": 0.5}})
    result = measure(small, 3, 7, 1, recipe)
    assert result["problems"] == []
    assert result["clips"] == 7
    assert sum(result["kills"].values()) == 3
