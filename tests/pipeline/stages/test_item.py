"""Tests that items reach the next stage, the driver and the catalog with all that belongs to them."""

from __future__ import annotations

from dataclasses import replace

from pipeline.errors import ErrorCode, Failure
from pipeline.formats.schema import Status
from pipeline.stages.item import ClipItem, SourceItem, read_items, read_values, to_table

CLIP = ClipItem(
    {"source_uri": "/videos/a.mp4", "clip_id": "0" * 32, "fps": 16.0, "timings": {"cut": 0.5}},
    manifest={"title": "film a", "licence": "CC0"},
    signals={"luma": 100.0, "is_moving": True, "text": None},
    members={"mp4": b"\0\1", "pose.mp4": b"\2"},
    preview=b"\3",
    stages_done=1,
)
SOURCE = SourceItem({"source_uri": "/videos/a.mp4", "status": Status.CUT, "windows": []}, {"title": "film a"})


def test_an_item_goes_to_the_next_stage_unchanged() -> None:
    assert list(read_items(to_table(CLIP))) == [CLIP]
    assert list(read_items(to_table(SOURCE))) == [SOURCE]


def test_the_driver_gets_all_but_the_bytes() -> None:
    assert read_values(to_table(CLIP)) == [replace(CLIP, members={}, preview=None)]
    assert read_values(to_table(SOURCE)) == [SOURCE]


def test_a_row_has_the_columns_of_manifest_and_signals_too() -> None:
    assert CLIP.columns() == {
        "kind": "clip", "source_uri": "/videos/a.mp4", "clip_id": "0" * 32, "fps": 16.0, "timings": {"cut": 0.5},
        "title": "film a", "licence": "CC0", "luma": 100.0, "is_moving": True, "text": None,
    }  # fmt: skip
    assert SOURCE.columns() == {
        "kind": "source", "source_uri": "/videos/a.mp4", "status": "cut", "windows": [], "title": "film a",
    }  # fmt: skip


def test_what_failed_keeps_its_values_and_loses_its_bytes() -> None:
    item = replace(CLIP, members=dict(CLIP.members))
    item.fail(Failure(ErrorCode.ANNOTATOR_ERROR, "no"), "pose")
    verdict = {"status": "failed", "code": "ANNOTATOR_ERROR", "detail": "no", "stage": "pose"}
    assert item.columns() == CLIP.columns() | verdict
    assert not item.members
