"""The end of the Ray plan: tasks that tell the driver what has settled, and write it into shards."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from pipeline.formats import shards
from pipeline.formats.schema import BASE_LAYER
from pipeline.stages.item import items, records
from pipeline.storage.folder import Folder
from pipeline.storage.scratch import Scratch


def peek(table: pa.Table) -> list[dict[str, Any]]:
    """The records of a block, for the driver, which never sees the bytes."""
    return records(table)


def pack(out: Folder, run_id: str, layer: str, *tables: pa.Table) -> list[dict[str, Any]]:
    """Write settled items into shards and previews; returns their catalog rows, with where the bytes are.

    Kept clips go to shards/, pending ones to pending/, and those of a layer to layers/.
    """
    rows: list[dict[str, Any]] = []
    with Scratch() as scratch:
        folders = {"kept": "shards", "pending": "pending"} if layer == BASE_LAYER else {"kept": "layers"}
        made = {name: shards.ShardWriter(scratch.path, name, run_id) for name in (*folders.values(), "previews")}
        for item in (item for table in tables for item in items(table)):
            rows.append(item.record)
            if item.members and item.record["status"] in folders:
                made[folders[item.record["status"]]].add(item.record["clip_id"], item.members)
            if item.preview:
                made["previews"].add(item.record["clip_id"], {"jpg": item.preview})
        placed = {name: writer.close(out) for name, writer in made.items()}
    for row in rows:
        clip = row.get("clip_id")
        for place in (placed[name].get(clip) for name in folders.values() if clip):
            if place:
                row |= {"shard": place.shard, "offset": place.offset, "bytes": place.size, "crc32": place.crc32}
        preview = placed["previews"].get(clip) if clip else None
        if preview:
            row |= {
                "preview_shard": preview.shard,
                "preview_offset": preview.offset,
                "preview_bytes": preview.size,
            }
    return rows
