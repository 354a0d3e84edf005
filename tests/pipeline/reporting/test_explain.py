"""Tests that `explain` describes every kind of row correctly, and finds what a person is likely to type."""

from __future__ import annotations

import json
from typing import Any

import pytest
import small_dataset
from typer.testing import CliRunner

from pipeline.cli.main import app, main
from pipeline.errors import ADVICE, ErrorCode, UsageError
from pipeline.reporting.explain import explain, format_text


def explain_text(dataset: Any, name: str) -> str:
    """The sentences about a clip or source."""
    facts = explain(dataset.url, name)
    json.dumps(facts)
    return format_text(facts)


def test_a_kept_clip(dataset: Any) -> None:
    clip = small_dataset.identity("a0")
    explanation = explain_text(dataset, clip[:6])
    assert f"Clip {clip}" in explanation
    assert "It shows /videos/a.mp4 from 0.000 to 0.500 s." in explanation
    assert "9 frames at 16 fps, 64x48" in explanation
    assert "It is kept" in explanation
    assert "Tasks: text, gray" in explanation
    assert "luma = 100  [0..255] mean luma" in explanation
    assert "title: film a" in explanation
    assert "Licence: CC0" in explanation
    assert "  scribble " in explanation
    row = dataset.row("a0")
    assert f"Layer base: {row['shard']}, {row['bytes']} bytes from {row['offset']} on" in explanation
    assert "Layer flow: shards/" in explanation
    assert f"tar -xf '{dataset.url}/{row['shard']}'" in explanation


def test_a_rejected_clip(dataset: Any) -> None:
    facts = explain(dataset.url, small_dataset.identity("a1"))
    assert facts["verdict"]["rule_sql"] == "luma < 20"
    assert "It is rejected by the rule too_dark: luma < 20  (luma = 12.5)" in format_text(facts)


def test_a_failed_clip(dataset: Any) -> None:
    explanation = explain_text(dataset, small_dataset.identity("b1"))
    assert "It failed with ANNOTATOR_ERROR in the step scribble: ValueError: no" in explanation
    assert ADVICE[ErrorCode.ANNOTATOR_ERROR] in explanation


def test_the_history_of_a_clip(dataset: Any) -> None:
    facts = explain(dataset.url, small_dataset.identity("a2"))
    assert [(row["sequence"], row["status"]) for row in facts["history"]] == [(3, "pending"), (5, "kept")]
    assert f"part 3, layer base: pending (too_dark) by run {small_dataset.RUN}, started " in format_text(facts)


def test_a_pending_clip(dataset: Any) -> None:
    assert "It is pending on the rule too_dark: luma < 20" in explain_text(dataset, small_dataset.identity("b2"))


@pytest.mark.parametrize("name", ["a.mp4", "/videos/a.mp4"])
def test_a_source(dataset: Any, name: str) -> None:
    explanation = explain_text(dataset, name)
    assert "Source /videos/a.mp4" in explanation
    assert f"clip {small_dataset.identity('a1')}  1.00 to 1.50 s  rejected (too_dark)" in explanation
    assert "The same content came also as /videos/d.mp4." in explanation


def test_sources_that_failed_or_are_twins(dataset: Any) -> None:
    assert "It failed with DECODE_ERROR in the step scan: moov atom not found" in explain_text(dataset, "c.mp4")
    assert "the same content as /videos/a.mp4, which holds the clips" in explain_text(dataset, "d.mp4")


def test_a_source_that_is_not_done(dataset: Any) -> None:
    dataset.commit(dataset.source("e", "cut", "01"))
    assert "2 of its clips have no verdict yet" in explain_text(dataset, "e.mp4")


def test_what_is_not_there(dataset: Any, tmp_path: Any) -> None:
    clip = small_dataset.identity("a0")
    with pytest.raises(UsageError, match=f"nearest name is {clip}"):
        explain(dataset.url, clip[:-1] + ("0" if clip[-1] != "0" else "1"))
    with pytest.raises(UsageError, match=r"nearest name is /videos/a\.mp4"):
        explain(dataset.url, "aa.mp4")
    with pytest.raises(UsageError, match="no clip and no source"):
        explain(dataset.url, clip[:5])
    with pytest.raises(UsageError, match="no catalog"):
        explain(str(tmp_path), clip)


def test_names_that_several_bear(dataset: Any) -> None:
    dataset.commit(
        dataset.source("a", "failed", source_uri="/other/a.mp4"),
        dataset.clip("a0", "rejected", clip_id="abcdef" + "0" * 26),
        dataset.clip("a0", "rejected", clip_id="abcdef" + "1" * 26),
    )
    with pytest.raises(UsageError, match=r"several sources are named a\.mp4: /other/a\.mp4, /videos/a\.mp4"):
        explain(dataset.url, "a.mp4")
    with pytest.raises(UsageError, match="several clips begin with abcdef"):
        explain(dataset.url, "abcdef")


def test_an_annotator_that_is_not_installed_here(dataset: Any) -> None:
    dataset.commit(dataset.clip("b0", "kept", layer="elsewhere", luma=None, contrast=None))
    assert "luma = 100" in explain_text(dataset, small_dataset.identity("b0"))


def test_the_command(dataset: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    runner = CliRunner()
    assert "Source /videos/c.mp4" in runner.invoke(app, ["explain", dataset.url, "c.mp4"]).stdout
    facts = json.loads(runner.invoke(app, ["explain", dataset.url, "c.mp4", "--json"]).stdout)
    assert facts["verdict"]["code"] == "DECODE_ERROR"
    monkeypatch.setattr("sys.argv", ["vdot-data", "explain", dataset.url, "zzz"])
    with pytest.raises(SystemExit) as exit_error:
        main()
    assert exit_error.value.code == 2
