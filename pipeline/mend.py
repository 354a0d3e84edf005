"""What is lost or damaged becomes a failure in the catalog, so that `vdot-data retry` makes it again."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from pipeline.catalog import Catalog
from pipeline.errors import ErrorCode
from pipeline.fetch import Scratch
from pipeline.lock import alone
from pipeline.schema import COLUMNS, PREVIEW, SAMPLE
from pipeline.storage import Folder
from pipeline.sweep import check_complete
from pipeline.verify import Report


def mark_failed(report: Report) -> int:
    """Commit a failure for every clip and layer whose bytes `verify` found lost or damaged; returns how many.

    Rejected clips stay rejected, without their preview. Raises `RunError` when another run is writing to the dataset or
    when its catalog is damaged itself.
    """
    folder = Folder(report.out)
    with Scratch() as scratch, alone(folder):
        catalog = Catalog(folder, scratch.path)
        check_complete(catalog)
        con = catalog.connect()
        con.execute("CREATE TEMP TABLE damaged AS SELECT unnest(?::VARCHAR[]) AS name", [sorted(report.damaged)])
        con.execute("CREATE TEMP TABLE hit AS SELECT *, clip_id IN (FROM damaged) AS whole FROM clips")
        arrow = con.sql(
            "SELECT * FROM hit WHERE whole OR shard IN (FROM damaged) OR preview_shard IN (FROM damaged) "
            "ORDER BY clip_id, layer"
        ).to_arrow_table()
        rows = arrow.to_pylist()
        for row in rows:
            whole = row.pop("whole")
            for place in (SAMPLE, PREVIEW):
                if whole or row[place[0]] in report.damaged:
                    lose(row, place, "verify", f"its bytes in {row[place[0]]} are lost or damaged")
        if rows:
            catalog.commit(pa.Table.from_pylist(rows, schema=committed(arrow.schema.remove(len(arrow.schema) - 1))))
        return len(rows)


def lose(row: dict[str, Any], place: tuple[str, ...], stage: str, detail: str) -> None:
    """Change a clip's row to say that its sample (`place` is SAMPLE) or its preview (PREVIEW) is no more."""
    row |= dict.fromkeys(place)
    if place == SAMPLE and row["status"] in ("kept", "pending"):
        row |= {"status": "failed", "code": ErrorCode.STORAGE_ERROR.value, "stage": stage, "detail": detail}
        row |= {"rule": None, "tasks": None}


def committed(schema: pa.Schema) -> pa.Schema:
    """A query's schema with the catalog's own types, which DuckDB's differ from in detail."""
    return pa.schema([COLUMNS.field(field.name) if field.name in COLUMNS.names else field for field in schema])
