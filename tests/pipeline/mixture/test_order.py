"""Tests the order of a mixture: exact shares, every clip once per pass, good mixing, and random access."""

from __future__ import annotations

import hashlib
from collections import Counter
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.curation.continue_mixture import find_beginning
from pipeline.errors import UsageError
from pipeline.mixture.interleave import Interleaving, floor_sum
from pipeline.mixture.mixture import HELD_OUT, SCHEMA, TRAIN, Mixture, StartPoint, Step, Stream, parse, write
from pipeline.mixture.order import Order
from pipeline.mixture.shuffle import Shuffle

numbers = st.integers(0, 10**6)


@given(st.integers(0, 60), st.integers(1, 10**4), numbers, numbers)
def test_a_sum_of_floors(count: int, divisor: int, slope: int, offset: int) -> None:
    assert floor_sum(count, divisor, slope, offset) == sum((slope * i + offset) // divisor for i in range(count))


@given(st.lists(st.fractions(Fraction(1, 10**6), 1), min_size=1, max_size=20), st.integers(0, 9), st.integers(0, 2000))
@settings(max_examples=60, deadline=None)
def test_turns_are_as_frequent_as_shares_and_can_be_counted(weights: list[Fraction], seed: int, steps: int) -> None:
    turns = Interleaving(weights, seed)
    counts = Counter(turns.at(step) for step in range(steps))
    for index, weight in enumerate(weights):
        assert turns.count(index, steps) == counts[index]
        # Far below the sqrt(N) of independent draws, except in the last block of 256, which is shuffled.
        share = weight / sum(weights)
        assert abs(turns.count(index, steps // 256 * 256) - steps // 256 * 256 * share) < 8
        assert abs(counts[index] - steps * share) < 8 + 40
    late = 10**12 + steps
    assert sum(turns.count(index, late) for index in range(len(weights))) == late
    assert turns.count(turns.at(late), late + 1) == turns.count(turns.at(late), late) + 1


@pytest.mark.parametrize("period", [1, 2, 3, 5, 8, 13, 21, 89, 100])
def test_what_happens_every_so_many_steps_meets_all_in_their_shares(period: int) -> None:
    turns = Interleaving([Fraction(share, 10) for share in (4, 2, 2, 1, 1)], 0)
    picks = [turns.at(period * number) for number in range(4000)]
    repeats = np.mean(np.array(picks[1:]) == np.array(picks[:-1]))
    # Independent draws give 0.26; the points of the circle without a shuffle give 0.55 at every 5th step and 0.97 at
    # every 89th.
    assert repeats < 0.31
    assert [picks.count(index) / len(picks) for index in range(5)] == pytest.approx([0.4, 0.2, 0.2, 0.1, 0.1], abs=0.03)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 60), st.integers(0, 3), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_a_pass_holds_every_clip_once_and_reads_few_shards_at_a_time(
    sizes: list[int], window: int, seed: int, number: int
) -> None:
    shards = np.repeat(np.arange(len(sizes)), sizes)
    shuffle = Shuffle(shards, f"key {seed}", window)
    clips = [shuffle.at(number, place) for place in range(len(shards))]
    assert sorted(clips) == list(range(len(shards)))
    repeated = Shuffle(shards, f"key {seed}", window)
    for place in np.random.default_rng(seed).permutation(len(shards))[:20]:
        assert repeated.at(number, int(place)) == clips[place]
    # Any range as long as a window touches the shards of at most two windows, each no longer than a window and a shard.
    for start in range(0, len(clips), window):
        touched = np.unique(shards[clips[start : start + window]])
        assert sum(sizes[shard] for shard in touched) <= 2 * (window + max(sizes)) + max(sizes)


def test_a_shuffle_is_as_good_as_a_perfect_one_within_its_window_and_mixes_shards() -> None:
    shards = np.repeat(np.arange(200), 60)
    shuffle = Shuffle(shards, "key", 3000)
    clips = np.array([shuffle.at(0, place) for place in range(len(shards))])
    next_clips = np.array([shuffle.at(1, place) for place in range(len(shards))])
    # Neighbours from one shard: 1 in 50 would be chance within windows of 50 shards.
    assert np.mean(np.diff(shards[clips]) == 0) < 0.03
    # The mean distance of clips from where they are stored: a perfect shuffle gives a third of their number.
    assert np.abs(clips - np.arange(len(clips))).mean() > 0.3 * len(clips)
    for order in (clips, next_clips):
        assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.3
    assert abs(np.corrcoef(clips, next_clips)[0, 1]) < 0.3


PLACE = ("layer", "shard", "offset", "bytes", "crc32")
SHAPES = [(81, 480, 832), (33, 480, 832), (81, 256, 256)]


def build_mixture(
    counts: dict[tuple[str, str], int],
    shares: dict[tuple[str, str], Fraction],
    step: Step,
    seed: int = 0,
    **options: Any,
) -> tuple[Mixture, pa.Table]:
    """A mixture of streams with this many clips each; a clip has one task, shapes and references alternate."""
    rows = []
    for (dataset, task), count in counts.items():
        for number in range(count):
            name = f"{dataset} {task} {number}"
            frames, height, width = SHAPES[number % len(SHAPES)]
            rows.append(
                {
                    "dataset": dataset, "clip_id": hashlib.md5(name.encode()).hexdigest(), "tasks": [task],
                    "split": HELD_OUT if number == 3 else TRAIN,
                    "frames": frames, "height": height, "width": width, "references": number % 2,
                    "places": [
                        dict(zip(PLACE, ("base", f"shards/{number // 7}.tar", 512 * number, 512, None), strict=True))
                    ],
                }
            )  # fmt: skip
    streams = tuple(Stream(*key, counts[key], share) for key, share in shares.items())
    task_parts = {task: (task,) if task != "r" else ("reference",) for _, task in counts}
    rows.sort(key=lambda row: (row["dataset"], row["clip_id"]))
    mixture = Mixture("h", seed, 0.0, step, options.get("begins", StartPoint()), {}, task_parts, streams)
    return mixture, pa.Table.from_pylist(rows, schema=SCHEMA)


def walk(order: Order, start: int = 0) -> Any:
    position = start
    while True:
        batch = order.at(position)
        yield batch, order.draw_clips(batch)
        position += 1


@st.composite
def mixtures(draw: Any) -> tuple[Mixture, pa.Table]:
    keys = draw(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("tdr")), min_size=1, max_size=4, unique=True))
    counts = {key: draw(st.integers(5, 60)) for key in keys}
    weights = {key: draw(st.integers(1, 9)) for key in keys}
    shares = {key: Fraction(weight, sum(weights.values())) for key, weight in weights.items()}
    step = Step(draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([None, 32760, 100_000])))
    return build_mixture(counts, shares, step, draw(st.integers(0, 3)))


@given(mixtures(), st.integers(0, 300))
@settings(max_examples=40, deadline=None)
def test_any_position_is_found_without_those_before(built: tuple[Mixture, pa.Table], start: int) -> None:
    batches = list(islice(walk(Order(*built)), start + 20))
    assert list(islice(walk(Order(*built), start), 20)) == batches[start:]
    jumping = Order(*built)
    for position in np.random.default_rng(start).permutation(len(batches))[:30]:
        batch = jumping.at(int(position))
        assert (batch, jumping.draw_clips(batch)) == batches[position]


@given(mixtures())
@settings(max_examples=30, deadline=None)
def test_steps_hold_one_bucket_and_passes_hold_every_clip_once(built: tuple[Mixture, pa.Table]) -> None:
    mixture, samples = built
    order = Order(*built)
    micro_batches = mixture.step.micro_batches
    counts: Counter[tuple[Any, int, int]] = Counter()
    steps = order.steps_per_epoch
    while any(
        order.count_drawn(micro_batches * steps).get(bucket, 0) < order.count_clips(bucket) for bucket in order.buckets
    ):
        steps *= 2
    batches = list(islice(walk(order), micro_batches * steps))
    for number, (batch, draws) in enumerate(batches):
        assert batch.bucket == batches[number - number % micro_batches][0].bucket
        assert len(draws) == mixture.step.count_clips(batch.bucket.tokens)
        for draw in draws:
            row = samples.slice(draw.row, 1).to_pylist()[0]
            assert row["split"] == TRAIN
            assert (row["dataset"], row["tasks"]) == (batch.bucket.dataset, [batch.bucket.task])
            assert (row["frames"], row["height"], row["width"]) == (
                batch.bucket.frames, batch.bucket.height, batch.bucket.width,
            )  # fmt: skip
            assert batch.bucket.references == (row["references"] if batch.bucket.task == "r" else 0)
            counts[batch.bucket, draw.pass_index, draw.row] += 1
    assert set(counts.values()) == {1}
    # A pass begins when the one before has ended, and no bucket and no clip is omitted.
    for bucket in order.buckets:
        passes = Counter(number for counted, number, _ in counts if counted == bucket)
        assert all(count == order.count_clips(bucket) for number, count in passes.items() if number < max(passes))
    drawn = {row for _, _, row in counts}
    assert drawn == {row for row, split in enumerate(samples["split"].to_pylist()) if split == TRAIN}
    assert order.count_drawn(len(batches)) == Counter(
        {bucket: sum(1 for counted, *_ in counts if counted == bucket) for bucket in order.buckets}
    )


@given(mixtures())
@settings(max_examples=30, deadline=None)
def test_shares_of_clips_are_exact_in_the_long_run(built: tuple[Mixture, pa.Table]) -> None:
    mixture, _ = built
    order = Order(*built)
    drawn = order.count_drawn(10**6 * mixture.step.micro_batches)
    for stream in mixture.streams:
        share = sum(count for bucket, count in drawn.items() if bucket.stream == stream.key) / sum(drawn.values())
        assert share == pytest.approx(float(stream.share), abs=1e-4)
        stream_counts = {bucket: count for bucket, count in drawn.items() if bucket.stream == stream.key}
        for bucket, count in stream_counts.items():
            clips = sum(order.count_clips(key) for key in stream_counts)
            assert count / sum(stream_counts.values()) == pytest.approx(order.count_clips(bucket) / clips, abs=1e-3)


def test_a_mixture_goes_on_where_an_older_one_stopped() -> None:
    clip_counts = {("a", "t"): 50, ("a", "d"): 20}
    old = build_mixture(clip_counts, {("a", "t"): Fraction(1, 2), ("a", "d"): Fraction(1, 2)}, Step(2))
    before = list(islice(walk(Order(*old)), 30))
    start = StartPoint(30, Order(*old).count_drawn(30))
    new = build_mixture(clip_counts, {("a", "t"): Fraction(9, 10), ("a", "d"): Fraction(1, 10)}, Step(4), begins=start)
    # A block of steps, over which shares are exact.
    after = list(islice(walk(Order(*new), 30), 4 * 256))
    assert parse(new[0].as_json()) == new[0]
    assert after[0][0].position == 30
    draw_counts = Counter((batch.bucket, draw) for batch, draws in before + after for draw in draws)
    assert set(draw_counts.values()) == {1}
    share = Counter(batch.bucket.task for batch, _ in after)
    assert share["t"] / len(after) == pytest.approx(0.9, abs=0.03)


def test_a_bucket_whose_clips_changed_begins_its_next_pass(tmp_path: Path) -> None:
    shares = {("a", "t"): Fraction(1)}
    old = build_mixture({("a", "t"): 50}, shares, Step(2))
    for name, (mixture, table) in {"old": old}.items():
        write(mixture, table, str(tmp_path / name))
    before = {(batch.bucket, draw.pass_index) for batch, draws in islice(walk(Order(*old)), 60) for draw in draws}
    for clips in (44, 51, 60):
        new = build_mixture({("a", "t"): clips}, shares, Step(2))
        start = find_beginning(f"{tmp_path / 'old'}@60", Order(*new), new[1])
        resumed = Order(*build_mixture({("a", "t"): clips}, shares, Step(2), begins=start))
        after = list(islice(walk(resumed, 60), 300))
        last = {
            bucket: max(number for drawn_bucket, number in before if drawn_bucket == bucket)
            for bucket in resumed.buckets
        }
        counts = Counter((batch.bucket, draw) for batch, draws in after for draw in draws)
        assert set(counts.values()) == {1}
        for bucket in resumed.buckets:
            numbers = Counter(draw.pass_index for counted, draw in counts if counted == bucket)
            changed = len(resumed.rows(bucket)) != len(Order(*old).rows(bucket))
            assert min(numbers) == last[bucket] + 1 if changed else min(numbers) >= last[bucket]
            # Complete passes, from the first.
            full = [number for number in numbers if min(numbers) + (not changed) <= number < max(numbers)]
            assert full
            assert {numbers[number] for number in full} == {resumed.count_clips(bucket)}


def test_held_out_clips_of_a_task_that_is_not_trained_there_are_left_out() -> None:
    mixture, table = build_mixture({("a", "t"): 9, ("b", "t"): 9}, {("a", "t"): Fraction(1)}, Step(2))
    order = Order(mixture, table, HELD_OUT)
    assert {bucket.dataset for bucket in order.buckets} == {"a"}
    assert order.begins == StartPoint()


def test_what_stands_in_for_a_damaged_clip_is_of_its_bucket_and_another() -> None:
    built = build_mixture({("a", "t"): 40}, {("a", "t"): Fraction(1)}, Step(1, 100_000))
    order = Order(*built)
    batch = order.at(3)
    damaged = order.draw_clips(batch)[1]
    substitutes = [order.draw_replacement(batch, 1, attempt) for attempt in range(1, order.count_clips(batch.bucket))]
    assert damaged.row not in {substitute.row for substitute in substitutes}
    assert len({substitute.row for substitute in substitutes}) == order.count_clips(batch.bucket) - 1
    assert {substitute.pass_index for substitute in substitutes} == {damaged.pass_index}


def test_a_part_without_clips_is_said() -> None:
    built = build_mixture({("a", "t"): 2}, {("a", "t"): Fraction(1)}, Step(1))
    with pytest.raises(UsageError, match="no clip in its split 'held_out'"):
        Order(*built, HELD_OUT)
