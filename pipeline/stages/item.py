"""What travels between stages: a catalog row in the making, with the encoded bytes that belong to it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from annotators.base import Value
from pipeline.errors import Failure
from pipeline.formats.records import ClipRecord, SourceRecord, VerdictColumns
from pipeline.formats.schema import Kind, Status

_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("values", pa.string()),
        ("members", pa.list_(pa.struct([("name", pa.string()), ("data", pa.binary())]))),
        ("preview", pa.binary()),
    ]
)


@dataclass(slots=True)
class SourceItem:
    """A source on its way to the catalog, always settled. manifest: its columns of the manifest."""

    record: SourceRecord
    manifest: Mapping[str, str | None] = field(default_factory=dict)

    def columns(self) -> dict[str, object]:
        """All columns of its row."""
        return {**self.manifest, **self.record, "kind": Kind.SOURCE}


@dataclass(slots=True)
class ClipItem:
    """A clip on its way to the catalog; while its record has no `status`, it is still being worked on.

    members: name after the clip id ("mp4", "pose.mp4", "json") -> bytes. preview: a JPEG strip. stages_done: how many
    stages of annotators are behind it.
    """

    record: ClipRecord
    manifest: Mapping[str, str | None] = field(default_factory=dict)
    signals: dict[str, Value] = field(default_factory=dict)
    members: dict[str, bytes] = field(default_factory=dict)
    preview: bytes | None = None
    stages_done: int = 0

    def columns(self) -> dict[str, object]:
        """All columns of its row."""
        return {**self.manifest, **self.record, **self.signals, "kind": Kind.CLIP}

    def fail(self, failure: Failure, stage: str) -> None:
        """Settle it as failed, and drop its bytes."""
        self.record = {**self.record, **failure_columns(failure, stage)}
        self.members.clear()


Item = SourceItem | ClipItem


def failure_columns(failure: Failure, stage: str) -> VerdictColumns:
    """The columns of a verdict that something failed in `stage`."""
    return {"status": Status.FAILED, "code": failure.code, "detail": failure.detail, "stage": stage}


def to_table(item: Item) -> pa.Table:
    """An item as a one-row Arrow table."""
    values: dict[str, object] = {"record": item.record, "manifest": item.manifest}
    row: dict[str, object] = {"kind": Kind.SOURCE, "members": [], "preview": None}
    if isinstance(item, ClipItem):
        values |= {"signals": item.signals, "stages_done": item.stages_done}
        members = [{"name": name, "data": data} for name, data in item.members.items()]
        row = {"kind": Kind.CLIP, "members": members, "preview": item.preview}
    return pa.Table.from_pylist([row | {"values": json.dumps(values)}], schema=_SCHEMA)


def read_items(table: pa.Table) -> Iterator[Item]:
    """Read the items of an Arrow table."""
    for row in table.to_pylist():
        item = _parse_item(row["kind"], row["values"])
        if isinstance(item, ClipItem):
            item.members = {member["name"]: member["data"] for member in row["members"]}
            item.preview = row["preview"]
        yield item


def read_values(table: pa.Table) -> list[Item]:
    """Read the items without their bytes."""
    return [_parse_item(row["kind"], row["values"]) for row in table.select(["kind", "values"]).to_pylist()]


def _parse_item(kind: str, values: str) -> Item:
    return SourceItem(**json.loads(values)) if kind == Kind.SOURCE else ClipItem(**json.loads(values))
