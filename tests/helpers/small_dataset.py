"""Writes a small real dataset without Ray: encoded clips in shards, previews, and a catalog with every kind of row.

Sources: A (clips a0, a1, a2), B (b0, b1, b2), C failed, D has the content of A. a0 has a layer; a2 was pending together
with b2 and is now kept, so that an old copy of it lies in a shard that is still in use.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.catalog.catalog import Catalog, utc_now, values
from pipeline.formats.clip_encode import encode_clip
from pipeline.formats.shards import ShardWriter, group_members
from pipeline.recipe import recipe
from pipeline.recipe.blueprint import Blueprint
from pipeline.stages import sandboxed
from pipeline.storage.folder import Folder

RECIPE = """
grid: {fps: 16, frames: 9, min_frames: 5, area: 4096, multiple: 16}
stages: [[scribble]]
rules: {too_dark: luma < 20}
tasks: {text: "true", gray: "true"}
"""
RUN = "0123456789ab"
SIZE = (9, 48, 64)  # frames, height, width
SHA_A, SHA_B = (hashlib.sha256(name).hexdigest() for name in (b"a", b"b"))


def identity(name: str) -> str:
    """The clip id of a clip's short name."""
    return hashlib.sha256(f"clip {name}".encode()).hexdigest()[:32]


def frames(name: str, shape: tuple[int, int, int] = SIZE) -> Any:
    """Noise that moves to the right, different for each name."""
    rng = np.random.default_rng(int(identity(name)[:8], 16))
    picture = rng.integers(0, 256, (*shape[1:], 3), np.uint8)
    return np.stack([np.roll(picture, 2 * index, axis=1) for index in range(shape[0])])


def mp4(name: str, shape: tuple[int, int, int] = SIZE) -> bytes:
    """The frames of a name as a clip's mp4."""
    return encode_clip(frames(name, shape), 16.0, 30, "ultrafast")


def sample(name: str, shape: tuple[int, int, int] = SIZE) -> dict[str, bytes]:
    """The members of a kept clip."""
    body = json.dumps({"clip_id": identity(name)}).encode()
    return {"mp4": mp4(name), "scribble.mp4": mp4(f"{name} scribble", shape), "json": body}


@dataclass
class Dataset:
    """A dataset under construction: rows go to parts, samples to shards."""

    url: str
    scratch: Path
    out: Folder = field(init=False)
    catalog: Catalog = field(init=False)

    def __post_init__(self) -> None:
        self.out = Folder(self.url)
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.catalog = Catalog(self.out, self.scratch)
        self.recipe = recipe.parse(RECIPE, "of the tests")
        self.blueprint = Blueprint.for_ingest(self.recipe, ("title",))

    def commit(self, *rows: dict[str, Any]) -> int:
        """Commit these rows as one part."""
        common = {"layer": "base", "run_id": RUN, "recipe_hash": self.recipe.hash}
        full = [common | {"timings": list({"cut": 0.5}.items())} | row for row in rows]
        return self.catalog.commit(pa.Table.from_pylist(full, schema=self.blueprint.schema()))

    def shard(self, folder: str, samples: dict[str, dict[str, bytes]]) -> dict[str, dict[str, Any]]:
        """Publish a shard of short name -> members; returns the columns with each sample's location."""
        writer = ShardWriter(self.scratch, folder, RUN)
        for name, parts in samples.items():
            writer.add(identity(name), parts)
        prefix = "preview_" if folder == "previews" else ""
        places = writer.close(self.out)
        columns = (f"{prefix}shard", f"{prefix}offset", f"{prefix}bytes", *([] if prefix else ["crc32"]))
        return {
            name: dict(zip(columns, (place.shard, place.offset, place.size, place.crc32), strict=False))
            for name, place in ((name, places[identity(name)]) for name in samples)
        }

    def clip(self, name: str, status: str, **columns: Any) -> dict[str, Any]:
        """A clip's row without its location."""
        start = 1.0 * int(name[1])
        row = {
            "kind": "clip", "clip_id": identity(name), "status": status, "source_uri": f"/videos/{name[0]}.mp4",
            "source_hash": {"a": SHA_A, "b": SHA_B}[name[0]], "start_s": start, "end_s": start + 0.5, "fps": 16.0,
            "frames": SIZE[0], "height": SIZE[1], "width": SIZE[2], "luma": 100.0, "contrast": 50.0,
            "title": f"film {name[0]}", "licence": "CC0", "lineage": self.blueprint.lineage,
            "tasks": ["text", "gray"] if status == "kept" else None,
        }  # fmt: skip
        return row | columns

    def source(self, name: str, status: str, windows: str = "", **columns: Any) -> dict[str, Any]:
        """A source's row; `windows`: the numbers of its clips."""
        span = {"frames": SIZE[0]}
        listed = [
            span | {"clip_id": identity(f"{name}{number}"), "start_s": float(number), "end_s": float(number) + 0.5}
            for number in windows
        ]
        row = {
            "kind": "source", "source_uri": f"/videos/{name}.mp4",
            "source_hash": {"b": SHA_B, "c": None}.get(name, SHA_A), "source_size": 1000, "source_stamp": "1",
            "status": status, "windows": listed, "source_width": 64,
            "source_height": 48, "source_fps": 25.0, "source_duration_s": 4.0, "source_codec": "h264",
            "title": f"film {name}", "licence": "CC0",
        }  # fmt: skip
        return row | columns

    def fill(self) -> Dataset:
        """Write the complete dataset."""
        run = {"kind": "run", "recipe": self.recipe.text, "version": "0.1.0", "started": utc_now()}
        self.commit(run)
        failed = {"code": "DECODE_ERROR", "stage": "scan", "detail": "moov atom not found"}
        self.commit(
            self.source("a", "cut", "012"), self.source("b", "cut", "012"), self.source("c", "failed", **failed),
            self.source("d", "same", same_as="/videos/a.mp4"),
        )  # fmt: skip
        strip = {name: {"jpg": sandboxed.make_strip(frames(name))} for name in ("a0", "a1", "a2", "b0", "b2")}
        previews = self.shard("previews", strip)
        kept_places = self.shard("shards", {name: sample(name) for name in ("a0", "b0")})
        pending_places = self.shard("pending", {name: sample(name) for name in ("a2", "b2")})
        dark = {"rule": "too_dark", "detail": "luma < 20  (luma = 12.5)", "luma": 12.5}
        unmeasured = {"rule": "too_dark", "detail": "luma < 20  (luma = null)", "luma": None}
        self.commit(
            self.clip("a0", "kept", **kept_places["a0"], **previews["a0"]),
            self.clip("a1", "rejected", **dark, **previews["a1"]),
            self.clip("a2", "pending", **unmeasured, **pending_places["a2"], **previews["a2"]),
            self.clip("b0", "kept", **kept_places["b0"], **previews["b0"]),
        )
        broken = {"code": "ANNOTATOR_ERROR", "stage": "scribble", "detail": "ValueError: no"}
        self.commit(
            self.clip("b1", "failed", **broken),
            self.clip("b2", "pending", **unmeasured, **pending_places["b2"], **previews["b2"]),
        )
        moved_places = self.shard("shards", {"a2": sample("a2")})
        self.commit(self.clip("a2", "kept", **moved_places["a2"], **previews["a2"]))
        body = json.dumps({"clip_id": identity("a0")}).encode()
        layer_places = self.shard("shards", {"a0": {"flow.mp4": mp4("a0 flow"), "flow.json": body}})
        self.commit(self.clip("a0", "kept", layer="flow", luma=None, contrast=None, title=None, **layer_places["a0"]))
        self.commit(run | {"finished": utc_now()})
        return self

    # The methods below read or damage a dataset on a disk.

    def rows(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(clip id, layer) -> current row."""
        rows = values(Catalog(self.out, self.scratch).connect(), "SELECT * FROM clips")
        return {(row["clip_id"], row["layer"]): row for row in rows}

    def row(self, name: str, layer: str = "base") -> dict[str, Any]:
        """The current row of a clip."""
        return self.rows()[identity(name), layer]

    def stored(self, name: str, layer: str = "base") -> dict[str, bytes]:
        """The members of a clip as they are stored."""
        row = self.row(name, layer)
        return group_members(self.out.read(row["shard"], row["offset"], row["bytes"]))[identity(name)]

    def edit(self, sequence: int, change: Any) -> None:
        """Rewrite a part: `change` gets its rows and returns new ones."""
        path = Path(self.url) / f"catalog/{sequence:012d}.parquet"
        table = pq.read_table(path)
        pq.write_table(pa.Table.from_pylist(change(table.to_pylist()), schema=table.schema), path)

    def all_bytes(self) -> bytes:
        """The bytes of every file of the dataset, concatenated."""
        return b"".join(path.read_bytes() for path in sorted(Path(self.url).rglob("*")) if path.is_file())
