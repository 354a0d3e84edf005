"""A small real mixture for trainers: shards of encoded clips with tracks, references and captions, without an
ingest."""

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
    said = {
        "txt": f"clip {number}".encode(),
        "json": json.dumps({"fps": 16.0, "source_hash": identity(f"source {number // 2}")}).encode(),
    }
    return {"mp4": mp4("clip"), "pose.mp4": mp4("pose"), "mask.mp4": mp4("mask"), **pictures, **said}


STEPS = 24
"""Steps of most tests: each bucket comes in them."""

Layers = Callable[[int], dict[str, dict[str, bytes]]]
"""The layers of a clip beside the base, oldest first: name -> members."""


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
    """A dataset `data` of so many clips in shards of five (at `url`, if given), and a mixture `mixed` of it, which
    holds the last `held` out; where that is."""
    out = Folder(url or str(folder / "data"))
    (folder / "scratch").mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []
    for begin in range(0, clips, 5):
        numbers = range(begin, min(begin + 5, clips))
        stored = {number: {"base": members(number), **layers(number)} for number in numbers}
        places: dict[int, list[dict[str, Any]]] = {number: [] for number in numbers}
        for layer in dict.fromkeys(name for found in stored.values() for name in found):
            writer = ShardWriter(folder / "scratch", "shards", "0123456789ab")
            having = [number for number in numbers if layer in stored[number]]
            for number in having:
                writer.add(identity(f"s{number}"), stored[number][layer])
            made_at = writer.close(out)
            for number in having:
                place = made_at[identity(f"s{number}")]
                where: dict[str, Any] = {
                    "layer": layer,
                    "shard": place.shard,
                    "offset": place.offset,
                    "bytes": place.size,
                }
                where["crc32"] = place.crc32
                places[number].append(where)
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
    made = Mixture(
        mixture.compute_digest(table), seed, 0.25, step, StartPoint(), {"films": (out.url, 1)}, dict(PARTS), streams
    )
    mixture.write(made, table, str(folder / "mixed"))
    return folder / "mixed"


def seen(batch: Batch) -> tuple[Any, ...]:
    """All that a batch says, with digests for arrays."""

    def digest(arrays: dict[str, Any]) -> dict[str, Any]:
        return {name: (one.shape, hashlib.md5(one.tobytes()).hexdigest()) for name, one in arrays.items()}

    said = batch.position, batch.bucket, batch.keys, batch.passes, batch.captions
    return *said, digest(batch.arrays), tuple(map(digest, batch.items))


def run(mixture: Path, world: int, workers: int, steps: int, state: Any = None, **more: Any) -> list[tuple[Any, ...]]:
    """What all ranks of a run see, in order of position."""
    found = []
    for rank in range(world):
        stream = Reading(str(mixture), rank=rank, world=world, workers=workers, state=state, **more)
        of_rank = [seen(batch) for step in islice(stream, steps) for batch in step]
        assert len(of_rank) == steps * 4 / world
        found += of_rank
        stream.close()
    return sorted(found, key=lambda one: one[0])
