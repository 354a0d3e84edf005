"""What lies at each position of a mixture: the micro-batch that every rank and every worker agrees on, without replay.

A bucket holds the clips of one dataset that teach one task in one shape. A step is `micro_batches` consecutive
micro-batches of one bucket, so that every rank of a step sees the same shapes. Whose turn it is says `interleave`,
which clips come says `shuffle`: both follow from the mixture and the position alone, whoever asks and whenever.

A bucket's clips come pass by pass: each once, in an order of the pass's own, before any comes again. A pass may end
within a step, and a bucket that is smaller than a step has several passes in it; so no clip and no bucket is left out.
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
from pipeline.mixture.arrow_arrays import Numbers, codes, numbers, whole
from pipeline.mixture.interleave import Interleaving
from pipeline.mixture.mixture import TRAIN, Begins, Bucket, Mixture
from pipeline.mixture.shuffle import Shuffle


@dataclass(frozen=True, slots=True)
class Draw:
    """One clip of a micro-batch: its row in samples.parquet, and the pass over its bucket that it belongs to."""

    row: int
    number: int


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """`position` counts micro-batches from the beginning of the run; `first` is the bucket's first draw in it."""

    position: int
    bucket: Bucket
    first: int


class Order:
    """The micro-batches of a mixture, by position. Not for several threads: it remembers where it was last."""

    def __init__(self, mixture: Mixture, samples: pa.Table, split: str = TRAIN) -> None:
        """`samples`: the table of the mixture. Raises `UsageError` when its part `split` has no clip of a stream."""
        self.begins = mixture.begins if split == TRAIN else Begins()
        every, shards = _buckets(mixture, samples, split)
        # A task of which all clips of a dataset are held out has no share there.
        streams = {one.key for one in mixture.streams}
        self._pools = {
            bucket: _Pool(rows, shards, f"{mixture.seed} {bucket}")
            for bucket, rows in every.items()
            if bucket.stream in streams
        }
        if not self._pools:
            raise UsageError(f"the mixture has no clip in its part {split!r}")
        self.buckets = tuple(sorted(self._pools))
        self._mixture = mixture
        clips: dict[tuple[str, str], int] = {}
        for bucket, pool in self._pools.items():
            clips[bucket.stream] = clips.get(bucket.stream, 0) + len(pool.rows)
        # How often each clip of a stream comes, against those of the others.
        often = {one.key: one.share / clips[one.key] for one in mixture.streams if one.key in clips}
        # A bucket of which a step draws more clips has its turn less often.
        turns = [often[one.stream] * self.clips(one) / mixture.step.clips(one.tokens) for one in self.buckets]
        self._turns = Interleaving(turns, mixture.seed)
        self.steps_per_epoch = math.ceil(sum(turns) / min(often.values()) / mixture.step.micro_batches)
        """Steps in which a clip comes once on average, if it is of the stream that is drawn least; others come more."""
        self._step = -1
        self._taken: dict[int, int] = {}

    def clips(self, bucket: Bucket) -> int:
        """How many clips a bucket has."""
        return len(self._pools[bucket].rows)

    def rows(self, bucket: Bucket) -> Numbers:
        """The rows of a bucket's clips in samples.parquet, in the order in which they are stored; none of one
        unknown."""
        pool = self._pools.get(bucket)
        return np.empty(0, np.int64) if pool is None else pool.rows

    def bucket(self, position: int) -> Bucket:
        """The bucket of the micro-batch at a position."""
        step = (position - self.begins.position) // self._mixture.step.micro_batches
        return self.buckets[self._turns.at(step)]

    def at(self, position: int) -> MicroBatch:
        """The micro-batch at a position, which is not below that at which the mixture begins."""
        begun = self.begins
        step, within = divmod(position - begun.position, self._mixture.step.micro_batches)
        which = self._turns.at(step)
        bucket = self.buckets[which]
        number = self._turns_before(which, step) * self._mixture.step.micro_batches + within
        size = self._mixture.step.clips(bucket.tokens)
        return MicroBatch(position, bucket, begun.drawn.get(bucket, 0) + number * size)

    def draws(self, batch: MicroBatch) -> list[Draw]:
        """The clips of a micro-batch."""
        size = self._mixture.step.clips(batch.bucket.tokens)
        return list(map(self._pools[batch.bucket].draw, range(batch.first, batch.first + size)))

    def instead(self, batch: MicroBatch, index: int, attempt: int) -> Draw:
        """What comes in place of the clip `index` of a micro-batch when it is damaged, and when the first such clip is,
        and so on: the next ones of the same pass, which come a second time in it."""
        pool = self._pools[batch.bucket]
        clips = len(pool.rows)
        number, place = divmod(batch.first + index, clips)
        return pool.draw(number * clips + (place + attempt) % clips)

    def drawn(self, position: int) -> dict[Bucket, int]:
        """How many clips of each bucket were drawn before a position at which a step begins."""
        begun, m = self.begins, self._mixture.step.micro_batches
        steps = (position - begun.position) // m
        return dict(begun.drawn) | {
            bucket: begun.drawn.get(bucket, 0)
            + self._turns.count(which, steps) * m * self._mixture.step.clips(bucket.tokens)
            for which, bucket in enumerate(self.buckets)
        }

    def _turns_before(self, which: int, step: int) -> int:
        """How many steps before `step` are this bucket's; from memory where steps are asked for one after the other."""
        if step != self._step:
            if step != self._step + 1:
                self._taken.clear()
            known = self._taken.get(which)
            self._taken[which] = self._turns.count(which, step) if known is None else known + 1
            self._step = step
        return self._taken[which]


class _Pool:
    """The clips of one bucket, pass by pass."""

    def __init__(self, rows: Numbers, shards: Numbers, key: str) -> None:
        """`rows` in the order in which they are stored; `shards`: the shard of every row there is."""
        self.rows = rows
        self._shards, self._key = shards, key

    def draw(self, place: int) -> Draw:
        """What comes at a place, counted over all passes."""
        number, within = divmod(place, len(self.rows))
        return Draw(int(self.rows[self._shuffle.at(number, within)]), number)

    @cached_property
    def _shuffle(self) -> Shuffle:
        """Made when it is needed: most of a mixture's buckets may never be asked for."""
        return Shuffle(self._shards[self.rows], self._key)


def _buckets(mixture: Mixture, samples: pa.Table, split: str) -> tuple[dict[Bucket, Numbers], Numbers]:
    """The rows of each bucket, in the order in which they are stored; and a number for the shard of every row."""
    columns = {name: whole(samples[name]) for name in samples.column_names}
    places, tasks = columns["places"], columns["tasks"]
    # The base layer's, which comes first.
    first = places.values.take(places.offsets[: len(places)])
    datasets, dataset_names = codes(columns["dataset"])
    # In the order of their names, so that what else is in the mixture makes no difference; two datasets may have shards
    # of one name.
    shard_codes, shard_names = codes(first.field("shard"))
    shards = _ranks(dataset_names)[datasets] * len(samples) + _ranks(shard_names)[shard_codes]
    splits, split_names = codes(columns["split"])
    stored = np.lexsort((numbers(first.field("offset")), shards))
    stored = stored[np.isin(splits, [code for code, name in enumerate(split_names) if name == split])[stored]]
    shapes = {name: numbers(columns[name]) for name in ("frames", "height", "width", "references")}
    task_rows, (task_codes, task_names) = numbers(pc.list_parent_indices(tasks)), codes(pc.list_flatten(tasks))
    found: dict[Bucket, Numbers] = {}
    for task, parts in mixture.parts.items():
        fit = np.zeros(len(samples), bool)
        fit[task_rows[task_codes == (task_names.index(task) if task in task_names else -1)]] = True
        rows = stored[fit[stored]]
        names = ["frames", "height", "width", *(["references"] if REFERENCE in parts else [])]
        keys = datasets[rows]
        for name in names:
            keys = _same(keys * (shapes[name].max(initial=0) + 1) + shapes[name][rows])
        for at in np.split(np.argsort(keys, kind="stable"), np.cumsum(np.bincount(keys))[:-1]):
            if len(at):
                row = rows[at[0]]
                shape = {name: int(shapes[name][row]) if name in names else 0 for name in shapes}
                found[Bucket(dataset_names[datasets[row]], task, **shape)] = rows[at]
    return found, shards


def _ranks(values: list[Any]) -> Numbers:
    """The place of each value among all of them, sorted."""
    ranks = np.empty(len(values), np.int64)
    ranks[sorted(range(len(values)), key=values.__getitem__)] = np.arange(len(values))
    return ranks


def _same(values: Numbers) -> Numbers:
    """Equal numbers as equal numbers 0, 1, ..., so that they stay small."""
    return codes(pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(values)]))[0]
