"""Tests that the typed records have the columns of the catalog, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.formats import records
from pipeline.formats.schema import COLUMNS


@pytest.mark.parametrize("record", [records.SourceRecord, records.ClipRecord])
def test_a_record_names_columns(record: Any) -> None:
    assert set(record.__annotations__) <= set(COLUMNS.names)


@pytest.mark.parametrize(
    ("column", "nested"),
    [("shots", records.ShotColumns), ("windows", records.WindowColumns), ("lineage", records.LineageEntry)],
)
def test_what_is_nested_has_the_fields_that_are_stored(column: str, nested: Any) -> None:
    struct = COLUMNS.field(column).type.value_type
    assert set(nested.__annotations__) == {struct.field(index).name for index in range(struct.num_fields)}


def test_clips_repeat_all_that_is_known_of_their_source() -> None:
    names = {name for name in COLUMNS.names if name.startswith("source_")}
    assert set(records.SourceColumns.__annotations__) == names
    source: records.SourceRecord = {"source_uri": "/a.mp4", "source_width": 64, "windows": [], "detector": "x 1"}
    assert records.source_columns(source) == {"source_uri": "/a.mp4", "source_width": 64}
