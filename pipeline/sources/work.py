"""The pieces of work of a run, as they travel from its ledger to the workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypedDict

import pyarrow as pa

from annotators.base import Value
from pipeline.formats.records import ClipRecord, SourceRecord, WindowColumns
from pipeline.sources import source_list
from pipeline.sources.expand import Source

# A source (uri to known), or a stored clip (manifest and clip). JSON, because a stage needs only a few values.
SCHEMA = pa.schema(
    [
        *(field for field in source_list.SCHEMA if field.name != "position"),
        ("known", pa.string()),
        ("clip", pa.string()),
    ]
)


class EarlierCut(TypedDict):
    """What an earlier run learned of a source that it cut: its row, and which of its clips have no verdict."""

    row: SourceRecord
    missing: list[WindowColumns]


@dataclass(frozen=True, slots=True)
class SourceWork:
    """A source to be cut."""

    source: Source
    earlier: EarlierCut | None


@dataclass(frozen=True, slots=True)
class ClipWork:
    """A stored clip to be annotated again: its row, its columns of the manifest, and its signals."""

    record: ClipRecord
    manifest: dict[str, str | None]
    signals: dict[str, Value]


WorkItem = SourceWork | ClipWork


def read_work(table: pa.Table) -> Iterator[WorkItem]:
    """The pieces of work of an Arrow table of `SCHEMA`."""
    for row in table.to_pylist():
        manifest = json.loads(row["manifest"])
        if row["clip"]:
            clip = json.loads(row["clip"])
            yield ClipWork(clip["record"], manifest | clip.get("manifest", {}), clip.get("signals", {}))
        else:
            earlier = json.loads(row["known"]) if row["known"] else None
            yield SourceWork(Source(row["uri"], row["size"], row["stamp"], manifest, row["content"]), earlier)
