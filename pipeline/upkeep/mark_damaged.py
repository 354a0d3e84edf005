"""Marks lost or damaged samples as failed in the catalog, so that `vdot-data retry` makes them again."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pyarrow as pa

from pipeline.catalog.catalog import BATCH
from pipeline.catalog.dataset import lock_catalog
from pipeline.errors import ErrorCode
from pipeline.formats.schema import COLUMNS, PREVIEW, SAMPLE, Status
from pipeline.storage.folder import Folder
from pipeline.storage.scratch import Scratch
from pipeline.upkeep.shard_check import Piece
from pipeline.upkeep.verify import VerifyReport

_DAMAGE = pa.schema([(name, pa.string()) for name in ("shard", "clip_id", "layer", "what")])


def mark_failed(report: VerifyReport) -> int:
    """Commit a failure for every clip and layer whose bytes `verify` found lost or damaged; returns how many.

    Only what the catalog still places in that shard is marked. A clip with only a damaged preview loses the preview and
    keeps its verdict. Raises `RunError` when another run is writing to the dataset, or when its catalog has gaps.
    """
    failed = 0
    with Scratch() as scratch, lock_catalog(Folder(report.out), scratch.path) as catalog:
        con = catalog.connect()
        con.register("damage_rows", pa.Table.from_pylist([asdict(damage) for damage in report.damage], schema=_DAMAGE))
        con.execute("CREATE TEMP TABLE damage AS FROM damage_rows")
        hit = ", ".join(
            f"EXISTS (FROM damage d WHERE d.shard = c.{place[0]} AND (d.clip_id IS NULL "
            f"OR (d.clip_id, d.layer, d.what) = (c.clip_id, c.layer, '{piece}'))) AS vdot_{piece}"
            for piece, place in ((Piece.SAMPLE, SAMPLE), (Piece.PREVIEW, PREVIEW))
        )
        rows = con.sql(f"FROM (SELECT *, {hit} FROM clips c) WHERE vdot_sample OR vdot_preview ORDER BY clip_id, layer")
        for batch in rows.to_arrow_reader(BATCH):
            marked = batch.to_pylist()
            for row in marked:
                shard, sample, preview = row["shard"], row.pop("vdot_sample"), row.pop("vdot_preview")
                if preview:
                    clear_place(row, PREVIEW, "", "")
                if sample:
                    clear_place(row, SAMPLE, "verify", f"its bytes in {shard} are lost or damaged")
                    failed += row["status"] == Status.FAILED
            schema = use_catalog_types(batch.schema)
            catalog.commit(pa.Table.from_pylist(marked, schema=pa.schema(list(schema)[:-2])))
    return failed


def clear_place(row: dict[str, Any], place: tuple[str, ...], stage: str, detail: str) -> None:
    """Change a clip's row to say that its sample (`place` is SAMPLE) or its preview (PREVIEW) is gone."""
    row |= dict.fromkeys(place)
    if place == SAMPLE and row["status"] in (Status.KEPT, Status.PENDING):
        row |= {"status": Status.FAILED, "code": ErrorCode.STORAGE_ERROR.value, "stage": stage, "detail": detail}
        row |= {"rule": None, "tasks": None}


def use_catalog_types(schema: pa.Schema) -> pa.Schema:
    """Give a query's schema the catalog's own types, which differ from DuckDB's in detail."""
    return pa.schema([COLUMNS.field(field.name) if field.name in COLUMNS.names else field for field in schema])
