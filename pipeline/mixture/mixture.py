"""The mixture that a training run draws from: a folder that `vdot-data mix` writes once, pinned and with a hash.

    mixture.json     shares, seed, drop-out, steps, where each dataset is and up to which part it counts
    samples.parquet  one row per clip: its dataset, tasks, shape, and the place of its bytes in every layer

Imports little (pyarrow and fsspec), because trainers import it.
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
from pipeline.formats.canonical_json import canonical_json
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
        # Null for samples written before checksums existed.
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
    """The clips of one dataset that teach one task: their number, and their exact share of the draws."""

    dataset: str
    task: str
    clips: int
    share: Fraction

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"the share of {self.task} is {self.share}")

    @property
    def key(self) -> tuple[str, str]:
        """Dataset and task, which identify it."""
        return self.dataset, self.task


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """Clips of one stream in one shape; `references` is 0 for a task without references."""

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
        """A clip's tokens in the model: latent frames, including references, of 16 x 16 pixels a token.

        Wan's autoencoder makes one latent of 4 x 8 x 8 pixels, but of the first frame alone, and its transformer one
        token of 1 x 2 x 2 latents.
        """
        return ((self.frames + 2) // 4 + 1 + self.references) * (self.height // 16) * (self.width // 16)


@dataclass(frozen=True, slots=True)
class Step:
    """What one training step draws."""

    micro_batches: int = 8
    """Micro-batches of one bucket, divided among the ranks."""
    tokens: int | None = None
    """A micro-batch has as many clips as have at most so many tokens together, but at least one; null: one clip."""

    def __post_init__(self) -> None:
        for name, count in (("micro_batches", self.micro_batches), ("tokens", self.tokens)):
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, not {count}")

    def count_clips(self, tokens: int) -> int:
        """How many clips of `tokens` tokens a micro-batch has."""
        return 1 if self.tokens is None else max(1, self.tokens // tokens)


@dataclass(frozen=True, slots=True)
class StartPoint:
    """Where a mixture takes over from an older one: the position, and the clips drawn so far of each bucket."""

    position: int = 0
    drawn: dict[Bucket, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Mixture:
    """A mixture without its samples. `samples`: their digest. `datasets`: name -> (URL, number of the newest
    catalog part that counts). `parts`: task -> the tasks it is composed of, or itself if it is not a composite."""

    samples: str
    seed: int
    caption_dropout: float
    step: Step
    begins: StartPoint
    datasets: dict[str, tuple[str, int]]
    parts: dict[str, tuple[str, ...]]
    streams: tuple[Stream, ...]

    @property
    def hash(self) -> str:
        """16 hex digits over everything that decides what is drawn.

        The location of a dataset is not part of it, so that a copied dataset gives the same mixture.
        """
        drawn = {
            "samples": self.samples,
            "seed": self.seed,
            "caption_dropout": self.caption_dropout,
            "step": asdict(self.step),
            "begins": start_to_json(self.begins),
            "parts": self.parts,
            "streams": [[stream.dataset, stream.task, str(stream.share)] for stream in self.streams],
        }
        return hashlib.sha256(canonical_json(drawn).encode()).hexdigest()[:16]

    def as_json(self) -> str:
        """The JSON that `parse` reads."""
        return json.dumps(
            {
                "format": FORMAT,
                "hash": self.hash,
                "samples": self.samples,
                "seed": self.seed,
                "caption_dropout": self.caption_dropout,
                "step": asdict(self.step),
                "begins": start_to_json(self.begins),
                "datasets": {
                    name: {"url": url, "sequence": sequence} for name, (url, sequence) in self.datasets.items()
                },
                "parts": self.parts,
                "streams": [
                    {
                        "dataset": stream.dataset,
                        "task": stream.task,
                        "clips": stream.clips,
                        "share": str(stream.share),
                    }
                    for stream in self.streams
                ],
            },
            indent=1,
        )


def parse(text: str) -> Mixture:
    """A mixture from its JSON. Raises `ValueError`, `KeyError` or `TypeError` if it is invalid or of another format."""
    document = json.loads(text)
    if document["format"] != FORMAT:
        raise ValueError(f"it has format {document['format']!r}, and this version reads {FORMAT}")
    mixture = Mixture(
        samples=document["samples"],
        seed=document["seed"],
        caption_dropout=document["caption_dropout"],
        step=Step(**document["step"]),
        begins=StartPoint(
            document["begins"]["position"], {Bucket(*bucket): count for *bucket, count in document["begins"]["drawn"]}
        ),
        datasets={name: (entry["url"], entry["sequence"]) for name, entry in document["datasets"].items()},
        parts={task: tuple(parts) for task, parts in document["parts"].items()},
        streams=tuple(
            Stream(entry["dataset"], entry["task"], entry["clips"], Fraction(entry["share"]))
            for entry in document["streams"]
        ),
    )
    if mixture.hash != document["hash"]:
        raise ValueError(f"its hash is {document['hash']}, but its contents hash to {mixture.hash}: it was edited")
    return mixture


def read(url: str) -> tuple[Mixture, pq.ParquetFile]:
    """The mixture in a folder that `vdot-data mix` made, and its samples. Raises `UsageError` if there is none."""
    folder = Folder(url)
    with _explain_read_errors(url):
        samples = pq.ParquetFile(pa.BufferReader(folder.read(SAMPLES)))
        if not samples.schema_arrow.equals(SCHEMA):
            raise ValueError(f"{SAMPLES} has other columns")
        return parse(folder.read(FILE).decode()), samples


def read_all(url: str) -> tuple[Mixture, pa.Table]:
    """The same, with the samples as a table."""
    mixture, samples = read(url)
    with _explain_read_errors(url):
        return mixture, samples.read()


@contextmanager
def _explain_read_errors(url: str) -> Iterator[None]:
    """Turns any error in reading a mixture into a `UsageError`."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{url} is not a mixture (no {FILE}, or no {SAMPLES}): `vdot-data mix` makes one") from error
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, OSError, pa.ArrowException) as error:
        raise UsageError(f"the mixture {url} cannot be read ({error}): `vdot-data mix` makes it again") from error


def write(mixture: Mixture, samples: pa.Table, url: str) -> str:
    """Write a mixture into a folder, and return its URL. Raises `UsageError` when the folder holds another mixture."""
    folder = Folder(url)
    if not folder.create(SAMPLES, parquet(samples)) or not folder.create(FILE, mixture.as_json().encode()):
        # A mixture with the same hash draws the same clips, whatever else its dataset holds by now.
        try:
            stored_hash = parse(folder.read(FILE).decode()).hash
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            stored_hash = None
        if stored_hash != mixture.hash:
            raise UsageError(f"{folder.url} holds another mixture already: choose another folder")
    return folder.url


def start_to_json(begins: StartPoint) -> dict[str, Any]:
    """The start point as it is in the JSON."""
    drawn = [[*astuple(bucket), count] for bucket, count in sorted(begins.drawn.items())]
    return {"position": begins.position, "drawn": drawn}


def compute_digest(samples: pa.Table) -> str:
    """32 hex digits over samples with their places."""
    hasher = hashlib.sha256()
    for batch in samples.to_batches(max_chunksize=10_000):
        for row in batch.to_pylist():
            hasher.update(canonical_json(row).encode())
    return hasher.hexdigest()[:32]
