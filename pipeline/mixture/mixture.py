"""What a training run draws: a folder that `vdot-data mix` writes once and trainers read, pinned and with a hash.

    mixture.json     shares, seed, drop-out, steps, where each dataset lies and up to which part it counts
    samples.parquet  one row per clip: its dataset, tasks, shape, and the place of its bytes in every layer

Light on purpose (pyarrow and fsspec), because trainers import it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, field
from fractions import Fraction
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UsageError
from pipeline.storage.folder import Folder, parquet

FILE, SAMPLES = "mixture.json", "samples.parquet"
FORMAT = 2

TRAIN, HELD_OUT = "train", "held_out"

_PLACE = pa.struct(
    [
        ("layer", pa.string()),
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        # Null for what was written before there was one.
        ("crc32", pa.int64()),
    ]
)
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

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"the share of {self.task} is {self.share}")

    @property
    def key(self) -> tuple[str, str]:
        """What names it."""
        return self.dataset, self.task


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """Clips of one stream in one shape; `references` is 0 for a task that shows none."""

    dataset: str
    task: str
    frames: int
    height: int
    width: int
    references: int

    @property
    def stream(self) -> tuple[str, str]:
        """The key of its stream."""
        return self.dataset, self.task

    @property
    def tokens(self) -> int:
        """What a clip costs a model: latent frames, references among them, of 16 x 16 pixels a token (Wan's autoencoder
        makes one of 4 x 8 x 8 pixels, the first frame alone, and its transformer one of 1 x 2 x 2 of these)."""
        return ((self.frames + 2) // 4 + 1 + self.references) * (self.height // 16) * (self.width // 16)


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of training draws: `micro_batches` of one bucket, which ranks divide among them; each of one clip,
    or of as many as have at most `tokens` tokens together, and of one at least."""

    micro_batches: int = 8
    tokens: int | None = None

    def __post_init__(self) -> None:
        for name, count in (("micro_batches", self.micro_batches), ("tokens", self.tokens)):
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, not {count}")

    def clips(self, tokens: int) -> int:
        """How many clips of `tokens` tokens each a micro-batch has."""
        return 1 if self.tokens is None else max(1, self.tokens // tokens)


@dataclass(frozen=True, slots=True)
class Begins:
    """Where a mixture takes over from an older one: at a position, with so many clips of each bucket drawn."""

    position: int = 0
    drawn: dict[Bucket, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Mixture:
    """A mixture without its samples. `samples`: the `digest` of these. `datasets`: name -> (URL, number of the newest
    catalog part that counts). `parts`: task -> the tasks that it is made of, if it is a composite, else itself."""

    samples: str
    seed: int
    caption_dropout: float
    step: Step
    begins: Begins
    datasets: dict[str, tuple[str, int]]
    parts: dict[str, tuple[str, ...]]
    streams: tuple[Stream, ...]

    @property
    def hash(self) -> str:
        """16 hex digits over all that decides what is drawn.

        Where a dataset lies is no part of it, so that a copied dataset gives the same mixture.
        """
        drawn = {
            "samples": self.samples,
            "seed": self.seed,
            "caption_dropout": self.caption_dropout,
            "step": asdict(self.step),
            "begins": begins_as_json(self.begins),
            "parts": self.parts,
            "streams": [[one.dataset, one.task, str(one.share)] for one in self.streams],
        }
        return hashlib.sha256(json.dumps(drawn, sort_keys=True).encode()).hexdigest()[:16]

    def as_json(self) -> str:
        """What `parse` reads."""
        return json.dumps(
            {
                "format": FORMAT,
                "hash": self.hash,
                "samples": self.samples,
                "seed": self.seed,
                "caption_dropout": self.caption_dropout,
                "step": asdict(self.step),
                "begins": begins_as_json(self.begins),
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
    """A mixture from its JSON. Raises `ValueError`, `KeyError` or `TypeError` when it is none, or of another format."""
    told = json.loads(text)
    if told["format"] != FORMAT:
        raise ValueError(f"it has format {told['format']!r}, and this version reads {FORMAT}")
    found = Mixture(
        samples=told["samples"],
        seed=told["seed"],
        caption_dropout=told["caption_dropout"],
        step=Step(**told["step"]),
        begins=Begins(
            told["begins"]["position"], {Bucket(*bucket): count for *bucket, count in told["begins"]["drawn"]}
        ),
        datasets={name: (one["url"], one["sequence"]) for name, one in told["datasets"].items()},
        parts={task: tuple(parts) for task, parts in told["parts"].items()},
        streams=tuple(
            Stream(one["dataset"], one["task"], one["clips"], Fraction(one["share"])) for one in told["streams"]
        ),
    )
    if found.hash != told["hash"]:
        raise ValueError(f"its hash is {told['hash']}, and that of what it says is {found.hash}: it was edited")
    return found


def read(url: str) -> tuple[Mixture, pq.ParquetFile]:
    """The mixture in a folder that `vdot-data mix` made, and its samples. Raises `UsageError` when there is none."""
    folder = Folder(url)
    with _readable(url):
        samples = pq.ParquetFile(pa.BufferReader(folder.read(SAMPLES)))
        if not samples.schema_arrow.equals(SCHEMA):
            raise ValueError(f"{SAMPLES} has other columns")
        return parse(folder.read(FILE).decode()), samples


def read_all(url: str) -> tuple[Mixture, pa.Table]:
    """The same, with the samples as a table."""
    mixture, samples = read(url)
    with _readable(url):
        return mixture, samples.read()


@contextmanager
def _readable(url: str) -> Iterator[None]:
    """Turns what is wrong with a mixture into a `UsageError`."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{url} is no mixture (no {FILE}, or no {SAMPLES}): `vdot-data mix` makes one") from error
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, OSError, pa.ArrowException) as error:
        raise UsageError(f"the mixture {url} cannot be read ({error}): `vdot-data mix` makes it again") from error


def write(mixture: Mixture, samples: pa.Table, url: str) -> str:
    """Write a mixture into a folder, and give its URL. Raises `UsageError` when the folder holds another mixture."""
    folder = Folder(url)
    if not folder.create(SAMPLES, parquet(samples)) or not folder.create(FILE, mixture.as_json().encode()):
        # One of the same hash draws the same, whatever else its dataset holds by now.
        try:
            there = parse(folder.read(FILE).decode()).hash
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            there = None
        if there != mixture.hash:
            raise UsageError(f"{folder.url} holds another mixture already: choose another folder")
    return folder.url


def begins_as_json(begins: Begins) -> dict[str, Any]:
    """It as JSON has it."""
    drawn = [[*astuple(bucket), count] for bucket, count in sorted(begins.drawn.items())]
    return {"position": begins.position, "drawn": drawn}


def digest(samples: pa.Table) -> str:
    """32 hex digits over samples with their places."""
    state = hashlib.sha256()
    for batch in samples.to_batches(max_chunksize=10_000):
        for row in batch.to_pylist():
            state.update(json.dumps(row, sort_keys=True).encode())
    return state.hexdigest()[:32]
