"""What a training run draws: a folder that `vdot-data mix` writes once and trainers read, pinned and with a hash.

    mixture.json     shares, seed, drop-out, held-out part, where each dataset lies and up to which part it counts
    samples.parquet  one row per clip: its dataset, tasks, shape, and the place of its bytes in every layer

Light on purpose (pyarrow and the standard library), because trainers import it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pyarrow as pa

FILE, SAMPLES = "mixture.json", "samples.parquet"
FORMAT = 1

TRAIN, HELD_OUT = "train", "held_out"

_PLACE = pa.struct([("layer", pa.string()), ("shard", pa.string()), ("offset", pa.int64()), ("bytes", pa.int64())])
SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("clip_id", pa.string()),
        ("split", pa.string()),
        ("tasks", pa.list_(pa.string())),
        ("frames", pa.int64()),
        ("height", pa.int64()),
        ("width", pa.int64()),
        ("references", pa.int64()),
        ("places", pa.list_(_PLACE)),
    ]
)
"""The columns of samples.parquet, whose rows are sorted by dataset and clip id; `places` begins with the base layer."""


@dataclass(frozen=True, slots=True)
class Stream:
    """The clips of one dataset that teach one task: their number, and their exact share of what is drawn."""

    dataset: str
    task: str
    clips: int
    share: Fraction


@dataclass(frozen=True, slots=True)
class Mixture:
    """A mixture without its samples. `datasets`: name -> (URL, number of the newest catalog part that counts).
    `parts`: task -> the tasks that it is made of, if it is a composite, else itself."""

    hash: str
    seed: int
    caption_dropout: float
    datasets: dict[str, tuple[str, int]]
    parts: dict[str, tuple[str, ...]]
    streams: tuple[Stream, ...]

    def as_json(self) -> str:
        """What `parse` reads."""
        return json.dumps(
            {
                "format": FORMAT,
                "hash": self.hash,
                "seed": self.seed,
                "caption_dropout": self.caption_dropout,
                "datasets": {name: {"url": url, "sequence": n} for name, (url, n) in self.datasets.items()},
                "parts": self.parts,
                "streams": [
                    {"dataset": one.dataset, "task": one.task, "clips": one.clips, "share": str(one.share)}
                    for one in self.streams
                ],
            },
            indent=1,
        )


def parse(text: str) -> Mixture:
    """A mixture from its JSON. Raises `ValueError` or `KeyError` when it is none, or one of a newer format."""
    told = json.loads(text)
    if told["format"] != FORMAT:
        raise ValueError(f"it has format {told['format']}, and this version reads {FORMAT}")
    return Mixture(
        hash=told["hash"],
        seed=told["seed"],
        caption_dropout=told["caption_dropout"],
        datasets={name: (one["url"], one["sequence"]) for name, one in told["datasets"].items()},
        parts={task: tuple(parts) for task, parts in told["parts"].items()},
        streams=tuple(
            Stream(one["dataset"], one["task"], one["clips"], Fraction(one["share"])) for one in told["streams"]
        ),
    )


def content_hash(drawn: dict[str, Any], samples: pa.Table) -> str:
    """16 hex digits over all that decides what is drawn: `drawn` (JSON-able), and the samples with their places.

    Where a dataset lies is no part of it, so that a copied dataset gives the same mixture.
    """
    state = hashlib.sha256(json.dumps(drawn, sort_keys=True).encode())
    for batch in samples.to_batches(max_chunksize=10_000):
        for row in batch.to_pylist():
            state.update(json.dumps(row, sort_keys=True).encode())
    return state.hexdigest()[:16]
