"""Writes a small real mixture for trainers without an ingest: shards of clips, tracks, references and captions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from small_dataset import frames, identity

from pipeline.formats.clip_encode import encode_clip, encode_png
from pipeline.formats.shards import ShardWriter
from pipeline.mixture import mixture
from pipeline.mixture.mixture import HELD_OUT, SCHEMA, TRAIN, Mixture, StartPoint, Step, Stream
from pipeline.storage.folder import Folder
from training.data.stream import Batch
from training.data.stream import Stream as Reading

PARTS = {
    "text": ("text",),
    "pose": ("pose",),
    "inpaint": ("inpaint",),
    "reference_pose": ("reference", "pose"),
    "extension": ("extension",),
}
# Frames, height, width, references.
SHAPES = [(9, 48, 64, 1), (5, 32, 48, 2)]


@cache
def members(number: int) -> dict[str, bytes]:
    """The members of clip `number`."""
    *shape, references = SHAPES[number % len(SHAPES)]
    size: Any = tuple(shape)

    def mp4(name: str) -> bytes:
        return encode_clip(frames(f"s{number} {name}", size), 16.0, 30, "ultrafast")

    pictures = {f"ref.{k}.png": encode_png(frames(f"s{number} r{k}", (1, 20 + k, 30))[0]) for k in range(references)}
    documents = {
        "txt": f"clip {number}".encode(),
        "json": json.dumps({"fps": 16.0, "source_hash": identity(f"source {number // 2}")}).encode(),
    }
    return {"mp4": mp4("clip"), "pose.mp4": mp4("pose"), "mask.mp4": mp4("mask"), **pictures, **documents}


STEPS = 24
"""Steps of most tests: enough for each bucket to occur."""

Layers = Callable[[int], dict[str, dict[str, bytes]]]
"""The layers of a clip in addition to the base, oldest first: name -> members."""


def make(
    folder: Path,
    clips: int = 12,
    *,
    step: Step = Step(4),  # noqa: B008
    seed: int = 0,
    url: str | None = None,
    held: int = 0,
    layers: Layers = lambda number: {},
) -> Path:
    """Write a dataset `data` of this many clips in shards of five (at `url`, if given), and a mixture `mixed` of it,
    which holds out the last `held`; returns the mixture's folder."""
    out = Folder(url or str(folder / "data"))
    (folder / "scratch").mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []
    for start in range(0, clips, 5):
        numbers = range(start, min(start + 5, clips))
        layers_of = {number: {"base": members(number), **layers(number)} for number in numbers}
        places: dict[int, list[dict[str, Any]]] = {number: [] for number in numbers}
        for layer in dict.fromkeys(name for layer_members in layers_of.values() for name in layer_members):
            writer = ShardWriter(folder / "scratch", "shards", "0123456789ab")
            owners = [number for number in numbers if layer in layers_of[number]]
            for number in owners:
                writer.add(identity(f"s{number}"), layers_of[number][layer])
            locations = writer.close(out)
            for number in owners:
                location = locations[identity(f"s{number}")]
                place: dict[str, Any] = {
                    "layer": layer,
                    "shard": location.shard,
                    "offset": location.offset,
                    "bytes": location.size,
                }
                place["crc32"] = location.crc32
                places[number].append(place)
        for number in numbers:
            count, height, width, references = SHAPES[number % len(SHAPES)]
            split = HELD_OUT if number >= clips - held else TRAIN
            rows.append(
                {
                    "dataset": "films", "clip_id": identity(f"s{number}"), "split": split, "tasks": [*PARTS],
                    "frames": count, "height": height, "width": width, "references": references,
                    "places": places[number],
                }
            )  # fmt: skip
    rows.sort(key=lambda row: row["clip_id"])
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    streams = tuple(Stream("films", task, clips - held, Fraction(1, len(PARTS))) for task in PARTS)
    definition = Mixture(
        mixture.compute_digest(table), seed, 0.25, step, StartPoint(), {"films": (out.url, 1)}, dict(PARTS), streams
    )
    mixture.write(definition, table, str(folder / "mixed"))
    return folder / "mixed"


def seen(batch: Batch) -> tuple[Any, ...]:
    """All content of a batch, with digests for arrays."""

    def digest(arrays: dict[str, Any]) -> dict[str, Any]:
        return {name: (array.shape, hashlib.md5(array.tobytes()).hexdigest()) for name, array in arrays.items()}

    header = batch.position, batch.bucket, batch.keys, batch.passes, batch.captions
    return *header, digest(batch.arrays), tuple(map(digest, batch.items))


def run(
    mixture: Path, world: int, workers: int, steps: int, state: Any = None, **options: Any
) -> list[tuple[Any, ...]]:
    """The batches of all ranks of a run, in order of position."""
    batches = []
    for rank in range(world):
        stream = Reading(str(mixture), rank=rank, world=world, workers=workers, state=state, **options)
        rank_batches = [seen(batch) for step in islice(stream, steps) for batch in step]
        assert len(rank_batches) == steps * 4 / world
        batches += rank_batches
        stream.close()
    return sorted(batches, key=lambda batch: batch[0])
