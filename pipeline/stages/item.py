"""What travels between stages: a catalog row in the making, with the encoded bytes that belong to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.errors import Failure
from pipeline.formats.schema import Status

_SCHEMA = pa.schema(
    [
        ("record", pa.string()),
        ("members", pa.list_(pa.struct([("name", pa.string()), ("data", pa.binary())]))),
        ("preview", pa.binary()),
    ]
)


@dataclass(slots=True)
class Item:
    """A source or a clip on its way to the catalog.

    record: catalog columns, JSON-able. members: name after the clip id ("mp4", "pose.mp4", "json") -> bytes.
    preview: a JPEG strip. A record without `status` is still being worked on.
    """

    record: dict[str, Any]
    members: dict[str, bytes] = field(default_factory=dict)
    preview: bytes | None = None

    def fail(self, failure: Failure, stage: str) -> None:
        """Settle it as failed, and drop its bytes."""
        self.record |= failure_columns(failure, stage)
        self.members.clear()

    def to_table(self) -> pa.Table:
        """The item as a one-row Arrow table."""
        row = {
            "record": json.dumps(self.record),
            "members": [{"name": name, "data": data} for name, data in self.members.items()],
            "preview": self.preview,
        }
        return pa.Table.from_pylist([row], schema=_SCHEMA)


def failure_columns(failure: Failure, stage: str) -> dict[str, Any]:
    """The columns of a verdict that something failed in `stage`."""
    return {"status": Status.FAILED, "code": failure.code, "detail": failure.detail, "stage": stage}


def read_items(table: pa.Table) -> Iterator[Item]:
    """Read the items of an Arrow table."""
    for row in table.to_pylist():
        members = {member["name"]: member["data"] for member in row["members"]}
        yield Item(json.loads(row["record"]), members, row["preview"])


def read_records(table: pa.Table) -> list[dict[str, Any]]:
    """Read the records alone, without touching the bytes."""
    return [json.loads(text) for text in table.column("record").to_pylist()]
