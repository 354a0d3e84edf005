"""Tests that a run of several rounds, as after the loss of a node, does all work exactly once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import program
import pytest

from pipeline.engine import engine
from pipeline.engine.progress import Progress
from pipeline.ingest.commands import ingest


@pytest.mark.long
def test_rounds_follow_one_another(
    small_folder: Path, recipe: Any, local_dataset: program.Out, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "ROUND_WORK_PER_WORKER", 3)
    reports: list[tuple[int, int]] = []

    def watch(progress: Progress) -> None:
        reports.append((progress.finished, progress.work))

    out = program.Out(tmp_path / "out")
    summary = ingest([str(small_folder)], out.url, recipe_file=recipe(), cpus=1, watcher=watch)
    assert summary.clips == {"kept": {"": 7}}
    assert summary.done == {"kept": 7}
    assert reports == sorted(reports), "what is done never becomes less"
    assert {work for _, work in reports} == {4}
    assert out.samples() == local_dataset.samples()
