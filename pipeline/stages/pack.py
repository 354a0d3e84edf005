"""The end of the Ray plan: a task that writes settled items into shards."""

from __future__ import annotations

import pyarrow as pa

from pipeline.formats import shards
from pipeline.formats.schema import BASE_LAYER, Status
from pipeline.stages.item import ClipItem, Item, read_items
from pipeline.storage.folder import Folder
from pipeline.storage.scratch import Scratch


def pack(out: Folder, run_id: str, layer: str, *tables: pa.Table) -> list[Item]:
    """Write settled items into shards and previews; returns them with the place of their bytes in place of the bytes.

    Kept clips go to shards/, pending ones to pending/, and those of a layer to layers/.
    """
    items: list[Item] = []
    with Scratch() as scratch:
        folders = {Status.KEPT: "shards", Status.PENDING: "pending"}
        if layer != BASE_LAYER:
            folders = {Status.KEPT: "layers"}
        writers = {name: shards.ShardWriter(scratch.path, name, run_id) for name in (*folders.values(), "previews")}
        for item in (item for table in tables for item in read_items(table)):
            items.append(item)
            if isinstance(item, ClipItem):
                if item.members and item.record["status"] in folders:
                    writers[folders[item.record["status"]]].add(item.record["clip_id"], item.members)
                if item.preview:
                    writers["previews"].add(item.record["clip_id"], {"jpg": item.preview})
                item.members, item.preview = {}, None
        places = {name: writer.close(out) for name, writer in writers.items()}
    for item in items:
        if isinstance(item, ClipItem):
            clip_id = item.record["clip_id"]
            for place in (places[name].get(clip_id) for name in folders.values()):
                if place:
                    item.record.update(
                        {"shard": place.shard, "offset": place.offset, "bytes": place.size, "crc32": place.crc32}
                    )
            preview = places["previews"].get(clip_id)
            if preview:
                item.record.update(
                    {
                        "preview_shard": preview.shard,
                        "preview_offset": preview.offset,
                        "preview_bytes": preview.size,
                    }
                )
    return items
