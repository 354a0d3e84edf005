"""Tests what a run revises before it works: verdicts after a change of rules, rows after a change of the manifest."""

from __future__ import annotations

from typing import Any

import pytest
import small_dataset

from pipeline.catalog.ledger import Ledger
from pipeline.errors import UsageError
from pipeline.formats.records import SourceColumns
from pipeline.formats.schema import PLACE
from pipeline.ingest.commands import _failed_sources
from pipeline.recipe import recipe
from pipeline.recipe.blueprint import Blueprint
from pipeline.sources import source_list
from pipeline.sources.expand import Source
from pipeline.sources.work import ClipWork, SourceWork, WorkItem, read_work


def revise(
    dataset: Any, manifest: dict[str, str], text: str = small_dataset.RECIPE, uri: str = "a"
) -> list[dict[str, Any]]:
    """The rows that a run over source A with this manifest and recipe revises first; they are committed too."""
    sources = [Source(f"/videos/{uri}.mp4", 1000, "1", manifest), Source("/videos/b.mp4", 1000, "1", {})]
    listed = source_list.write(sources, None, dataset.scratch / "listing.parquet")
    columns = tuple(dict.fromkeys([*listed.manifest, "title"]))
    dataset.blueprint = Blueprint.for_ingest(recipe.parse(text, "of the test"), columns)
    tables = list(Ledger(dataset.catalog, dataset.blueprint, listed).revise())
    for table in tables:
        dataset.catalog.commit(table)
    return [row for table in tables for row in table.to_pylist()]


def test_nothing_new_changes_nothing(dataset: Any) -> None:
    assert revise(dataset, {"title": "film a", "licence": "CC0"}) == []
    assert revise(dataset, {}) == []


def test_a_corrected_licence_reaches_the_source_its_clips_and_their_layers(dataset: Any) -> None:
    before = dataset.rows()
    rows = revise(dataset, {"licence": "CC-BY-NC"})
    assert [row["source_uri"] for row in rows if row["kind"] == "source"] == ["/videos/a.mp4"]
    assert {(row["clip_id"], row["layer"]) for row in rows if row["kind"] == "clip"} == {
        (small_dataset.identity("a0"), "base"), (small_dataset.identity("a0"), "flow"),
        (small_dataset.identity("a1"), "base"), (small_dataset.identity("a2"), "base"),
    }  # fmt: skip
    after = dataset.rows()
    for key, row in after.items():
        is_corrected = row["source_uri"] == "/videos/a.mp4"
        assert row["licence"] == ("CC-BY-NC" if is_corrected else "CC0")
        unchanged = [name for name in row if name not in ("licence", "sequence", "detail", "run_id")]
        assert [row[name] for name in unchanged] == [before[key][name] for name in unchanged]
    assert revise(dataset, {"licence": "CC-BY-NC"}) == []


@pytest.mark.parametrize("column", ["rights", "a.b/c~d", 'say "so"'])
def test_a_column_that_is_new(dataset: Any, column: str) -> None:
    assert {row[column] for row in revise(dataset, {column: "x"})} == {"x"}
    assert revise(dataset, {column: "x"}) == []


def test_a_rule_sees_the_corrected_value(dataset: Any) -> None:
    text = small_dataset.RECIPE.replace("rules: {", "rules: {not_free: licence LIKE '%NC%', ")
    revise(dataset, {}, text)
    kept_keys = {key for key, row in dataset.rows().items() if row["status"] == "kept"}
    assert (small_dataset.identity("a0"), "base") in kept_keys
    rows = revise(dataset, {"licence": "CC-BY-NC"}, text)
    verdicts = {
        row["clip_id"]: (row["status"], row["rule"]) for row in rows if row["layer"] == "base" and row["clip_id"]
    }
    assert set(verdicts.values()) == {("rejected", "not_free")}
    assert "not_free" in (dataset.row("a0")["detail"] or "") or "licence" in dataset.row("a0")["detail"]


def test_a_licence_that_comes_late_reaches_layers_too(dataset: Any) -> None:
    for sequence in range(2, dataset.catalog.sequence + 1):
        dataset.edit(sequence, lambda rows: [row | {"licence": None} for row in rows])
    revise(dataset, {"licence": "CC0"})
    assert dataset.row("a0", "flow")["licence"] == "CC0"


def test_a_corrected_manifest_does_not_hide_that_the_file_changed(dataset: Any) -> None:
    sources = [Source("/videos/a.mp4", 2000, "2", {"licence": "CC-BY-NC"})]
    listed = source_list.write(sources, None, dataset.scratch / "listing.parquet")
    ledger = Ledger(dataset.catalog, dataset.blueprint, listed)
    for table in ledger.revise():
        dataset.catalog.commit(table)
    ledger.refresh()
    assert [row for chunk in ledger.chunks(10) for row in chunk.column("uri").to_pylist()] == ["/videos/a.mp4"]


def test_a_column_of_another_kind_is_refused(dataset: Any) -> None:
    revise(dataset, {"motion": "fast"})
    with pytest.raises(UsageError, match="column 'motion' of another kind"):
        revise(dataset, {}, small_dataset.RECIPE.replace("[[scribble]]", "[[scribble, flow]]"))


@pytest.mark.parametrize("rule", ["CAST(title AS INT) > 3", "CAST(title AS DATE) IS NULL"])
def test_a_rule_that_what_is_there_cannot_take_is_one_sentence(dataset: Any, rule: str) -> None:
    content = dataset.all_bytes()
    with pytest.raises(UsageError, match="cannot be applied"):
        revise(dataset, {}, small_dataset.RECIPE.replace("rules: {", f'rules: {{odd: "{rule}", '))
    assert dataset.all_bytes() == content


def test_what_failed_is_listed_again_as_it_came(dataset: Any) -> None:
    failed = {source.uri: source for source in _failed_sources(dataset.catalog)}
    assert set(failed) == {"/videos/b.mp4", "/videos/c.mp4"}, "b has a clip that failed"
    assert failed["/videos/c.mp4"] == Source("/videos/c.mp4", 1000, "1", {"title": "film c", "licence": "CC0"})


def list_work(ledger: Ledger) -> list[WorkItem]:
    return [work for chunk in ledger.chunks(10) for work in read_work(chunk)]


def test_work_on_a_source_says_what_an_earlier_run_learned(dataset: Any) -> None:
    source = Source("/videos/b.mp4", 1000, "1", {"title": "film b"})
    listed = source_list.write([source], None, dataset.scratch / "listing.parquet")
    (work,) = list_work(Ledger(dataset.catalog, dataset.blueprint, listed, retry=True))
    assert isinstance(work, SourceWork)
    assert work.source == source
    assert work.earlier is not None
    assert (work.earlier["row"]["status"], work.earlier["row"]["source_hash"]) == ("cut", small_dataset.SHA_B)
    assert work.earlier["missing"] == [
        {"clip_id": small_dataset.identity("b1"), "start_s": 1.0, "end_s": 1.5, "frames": small_dataset.SIZE[0]}
    ]


def test_work_on_a_stored_clip_has_its_row_its_manifest_and_its_signals(dataset: Any) -> None:
    source = Source("/videos/b.mp4", 1000, "1", {"title": "film b"})
    listed = source_list.write([source], None, dataset.scratch / "listing.parquet")
    chosen = recipe.parse(small_dataset.RECIPE.replace("[[scribble]]", "[[scribble, flow]]"), "of the test")
    work = list_work(Ledger(dataset.catalog, Blueprint.for_ingest(chosen, ("title",)), listed))
    clips = {item.record["clip_id"]: item for item in work if isinstance(item, ClipWork)}
    assert len(clips) == len(work)
    assert set(clips) == {small_dataset.identity(name) for name in ("b0", "b2")}
    clip, row = clips[small_dataset.identity("b0")], dataset.row("b0")
    assert {name: clip.record[name] for name in ("shard", "offset", "bytes", "licence", "lineage")} == {
        name: row[name] for name in ("shard", "offset", "bytes", "licence", "lineage")
    }
    assert clip.manifest == {"title": "film b"}
    assert clip.signals["luma"] == 100.0
    assert set(clip.signals) == set(dataset.blueprint.signals) - {"scribble_density"}


def test_work_on_a_stored_clip_keeps_all_that_its_row_says_of_the_source(dataset: Any) -> None:
    source = {
        "source_size": 1000, "source_stamp": "1", "source_width": 64, "source_height": 48, "source_fps": 25.0,
        "source_duration_s": 4.0, "source_frames": 100, "source_frames_unused": 1, "source_frames_missing": 2,
        "source_codec": "h264",
    }  # fmt: skip
    assert set(SourceColumns.__annotations__) == {*source, "source_uri", "source_hash"}
    place = {name: dataset.row("b0")[name] for name in (*PLACE, "crc32")}
    dataset.commit(dataset.clip("b0", "kept", **place, **source))
    work = list_work(Ledger(dataset.catalog, Blueprint.for_layer(dataset.recipe, "flow")))
    records = {item.record["clip_id"]: item.record for item in work if isinstance(item, ClipWork)}
    record, row = records[small_dataset.identity("b0")], dataset.row("b0")
    expected = {name: row[name] for name in (*SourceColumns.__annotations__, *place)}
    assert expected | source | place == expected
    assert {name: record.get(name) for name in expected} == expected


def test_work_of_a_layer_is_every_stored_clip(dataset: Any) -> None:
    work = list_work(Ledger(dataset.catalog, Blueprint.for_layer(dataset.recipe, "flow")))
    assert {item.record["clip_id"] for item in work if isinstance(item, ClipWork)} == {
        small_dataset.identity(name) for name in ("a0", "a2", "b0", "b2")
    }
    assert all(isinstance(item, ClipWork) and not item.manifest and not item.signals for item in work)
