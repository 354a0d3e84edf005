"""The micro-batch at each position of a mixture, on which every rank and worker agrees, without replay.

A bucket holds the clips of one dataset that teach one task in one shape. A step is `micro_batches` consecutive
micro-batches of one bucket, so that every rank of a step sees the same shapes. `interleave`
decides which bucket has its turn, `shuffle` which of its clips come: both depend only on the mixture and the position.

A bucket's clips come pass by pass: each once, in an order specific to the pass, before any is repeated. A pass may end
within a step, and a step may hold several passes of a small bucket, so no clip and no bucket is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UsageError
from pipeline.formats.conditions import REFERENCE
from pipeline.mixture.arrow_arrays import Numbers, combine_chunks, encode_values, to_int64
from pipeline.mixture.interleave import Interleaving
from pipeline.mixture.mixture import TRAIN, Bucket, Mixture, StartPoint
from pipeline.mixture.shuffle import Shuffle


@dataclass(frozen=True, slots=True)
class Draw:
    """One clip of a micro-batch: its row in samples.parquet, and the pass over its bucket that it belongs to."""

    row: int
    pass_index: int


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """`position` counts micro-batches from the beginning of the run; `first` is the bucket's first draw in it."""

    position: int
    bucket: Bucket
    first: int


class Order:
    """The micro-batches of a mixture, by position. Not thread-safe: it remembers the last position."""

    def __init__(self, mixture: Mixture, samples: pa.Table, split: str = TRAIN) -> None:
        """`samples`: the table of the mixture. Raises `UsageError` when its part `split` has no clip of a stream."""
        self.begins = mixture.begins if split == TRAIN else StartPoint()
        rows_by_bucket, shards = _group_by_bucket(mixture, samples, split)
        # A task with all clips of a dataset held out has no share there.
        streams = {stream.key for stream in mixture.streams}
        self._pools = {
            bucket: _Pool(rows, shards, f"{mixture.seed} {bucket}")
            for bucket, rows in rows_by_bucket.items()
            if bucket.stream in streams
        }
        if not self._pools:
            raise UsageError(f"the mixture has no clip in its split {split!r}")
        self.buckets = tuple(sorted(self._pools))
        self._mixture = mixture
        clips: dict[tuple[str, str], int] = {}
        for bucket, pool in self._pools.items():
            clips[bucket.stream] = clips.get(bucket.stream, 0) + len(pool.rows)
        # How often each clip of a stream is drawn, relative to those of other streams.
        frequencies = {
            stream.key: stream.share / clips[stream.key] for stream in mixture.streams if stream.key in clips
        }
        # A bucket of which a step draws more clips has its turn less often.
        turns = [
            frequencies[bucket.stream] * self.count_clips(bucket) / mixture.step.count_clips(bucket.tokens)
            for bucket in self.buckets
        ]
        self._turns = Interleaving(turns, mixture.seed)
        self.steps_per_epoch = math.ceil(sum(turns) / min(frequencies.values()) / mixture.step.micro_batches)
        """Steps in which a clip of the least drawn stream comes once on average; other clips come more often."""
        self._step = -1
        self._turns_taken: dict[int, int] = {}

    def count_clips(self, bucket: Bucket) -> int:
        """How many clips a bucket has."""
        return len(self._pools[bucket].rows)

    def rows(self, bucket: Bucket) -> Numbers:
        """The rows of a bucket's clips in samples.parquet, in stored order; none for an unknown bucket."""
        pool = self._pools.get(bucket)
        return np.empty(0, np.int64) if pool is None else pool.rows

    def bucket(self, position: int) -> Bucket:
        """The bucket of the micro-batch at a position."""
        step = (position - self.begins.position) // self._mixture.step.micro_batches
        return self.buckets[self._turns.at(step)]

    def at(self, position: int) -> MicroBatch:
        """The micro-batch at a position, which must not be before the start of the mixture."""
        start = self.begins
        step, offset = divmod(position - start.position, self._mixture.step.micro_batches)
        index = self._turns.at(step)
        bucket = self.buckets[index]
        number = self._turns_before(index, step) * self._mixture.step.micro_batches + offset
        size = self._mixture.step.count_clips(bucket.tokens)
        return MicroBatch(position, bucket, start.drawn.get(bucket, 0) + number * size)

    def draw_clips(self, batch: MicroBatch) -> list[Draw]:
        """The clips of a micro-batch."""
        size = self._mixture.step.count_clips(batch.bucket.tokens)
        return list(map(self._pools[batch.bucket].draw, range(batch.first, batch.first + size)))

    def draw_replacement(self, batch: MicroBatch, index: int, attempt: int) -> Draw:
        """The clip that replaces clip `index` of a micro-batch if it is damaged (`attempt` 1), the one that replaces
        that (2), and so on: the next clips of the same pass, which are then drawn twice in it."""
        pool = self._pools[batch.bucket]
        clips = len(pool.rows)
        pass_index, position = divmod(batch.first + index, clips)
        return pool.draw(pass_index * clips + (position + attempt) % clips)

    def count_drawn(self, position: int) -> dict[Bucket, int]:
        """How many clips of each bucket were drawn before a position at which a step begins."""
        start, micro_batches = self.begins, self._mixture.step.micro_batches
        steps = (position - start.position) // micro_batches
        return dict(start.drawn) | {
            bucket: start.drawn.get(bucket, 0)
            + self._turns.count(index, steps) * micro_batches * self._mixture.step.count_clips(bucket.tokens)
            for index, bucket in enumerate(self.buckets)
        }

    def _turns_before(self, index: int, step: int) -> int:
        """How many steps before `step` belong to this bucket; continues from the last call when steps come in order."""
        if step != self._step:
            if step != self._step + 1:
                self._turns_taken.clear()
            turns = self._turns_taken.get(index)
            self._turns_taken[index] = self._turns.count(index, step) if turns is None else turns + 1
            self._step = step
        return self._turns_taken[index]


class _Pool:
    """The clips of one bucket, pass by pass."""

    def __init__(self, rows: Numbers, shards: Numbers, key: str) -> None:
        """`rows` in stored order; `shards`: the shard of every row of the table."""
        self.rows = rows
        self._shards, self._key = shards, key

    def draw(self, position: int) -> Draw:
        """The clip at a position, counted over all passes."""
        pass_index, offset = divmod(position, len(self.rows))
        return Draw(int(self.rows[self._shuffle.at(pass_index, offset)]), pass_index)

    @cached_property
    def _shuffle(self) -> Shuffle:
        """Built when it is needed: most buckets of a mixture may never be drawn."""
        return Shuffle(self._shards[self.rows], self._key)


def _group_by_bucket(mixture: Mixture, samples: pa.Table, split: str) -> tuple[dict[Bucket, Numbers], Numbers]:
    """The rows of each bucket, in stored order; and a number for the shard of every row."""
    columns = {name: combine_chunks(samples[name]) for name in samples.column_names}
    places, tasks = columns["places"], columns["tasks"]
    # Those of the base layer, which comes first.
    first = places.values.take(places.offsets[: len(places)])
    datasets, dataset_names = encode_values(columns["dataset"])
    # In the order of their names, so that the rest of the mixture makes no difference; two datasets may have shards of
    # the same name.
    shard_codes, shard_names = encode_values(first.field("shard"))
    shards = _rank(dataset_names)[datasets] * len(samples) + _rank(shard_names)[shard_codes]
    splits, split_names = encode_values(columns["split"])
    stored = np.lexsort((to_int64(first.field("offset")), shards))
    stored = stored[np.isin(splits, [code for code, name in enumerate(split_names) if name == split])[stored]]
    shapes = {name: to_int64(columns[name]) for name in ("frames", "height", "width", "references")}
    task_rows, (task_codes, task_names) = to_int64(pc.list_parent_indices(tasks)), encode_values(pc.list_flatten(tasks))
    rows_by_bucket: dict[Bucket, Numbers] = {}
    for task, parts in mixture.parts.items():
        has_task = np.zeros(len(samples), bool)
        has_task[task_rows[task_codes == (task_names.index(task) if task in task_names else -1)]] = True
        rows = stored[has_task[stored]]
        names = ["frames", "height", "width", *(["references"] if REFERENCE in parts else [])]
        keys = datasets[rows]
        for name in names:
            keys = _renumber(keys * (shapes[name].max(initial=0) + 1) + shapes[name][rows])
        for members in np.split(np.argsort(keys, kind="stable"), np.cumsum(np.bincount(keys))[:-1]):
            if len(members):
                row = rows[members[0]]
                shape = {name: int(shapes[name][row]) if name in names else 0 for name in shapes}
                rows_by_bucket[Bucket(dataset_names[datasets[row]], task, **shape)] = rows[members]
    return rows_by_bucket, shards


def _rank(values: list[Any]) -> Numbers:
    """The rank of each value."""
    ranks = np.empty(len(values), np.int64)
    ranks[sorted(range(len(values)), key=values.__getitem__)] = np.arange(len(values))
    return ranks


def _renumber(values: Numbers) -> Numbers:
    """Equal numbers as equal numbers 0, 1, ..., so that they stay small."""
    return encode_values(pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(values)]))[0]
