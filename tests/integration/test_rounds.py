"""A run over more than one round does each piece of work once, as it does after the loss of a node."""

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
    small: Path, recipe: Any, local: program.Out, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "ROUND", 3)
    seen: list[tuple[int, int]] = []

    def watch(progress: Progress) -> None:
        seen.append((progress.done, progress.work))

    out = program.Out(tmp_path / "out")
    summary = ingest([str(small)], out.url, recipe_file=recipe(), cpus=1, watcher=watch)
    assert summary.clips == {"kept": {"": 7}}
    assert summary.done == {"kept": 7}
    assert seen == sorted(seen), "what is done never becomes less"
    assert {work for _, work in seen} == {4}
    assert out.samples() == local.samples()
