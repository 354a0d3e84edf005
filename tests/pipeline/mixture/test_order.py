"""The order of a mixture: exact shares, every clip once per pass, well mixed, and any position without those before."""

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

from pipeline.curation.continue_mixture import begins
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
    found = Counter(turns.at(step) for step in range(steps))
    for who, weight in enumerate(weights):
        assert turns.count(who, steps) == found[who]
        # Far below the sqrt(N) by which draws would differ, but for what the last block of 256 shuffles.
        share = weight / sum(weights)
        assert abs(turns.count(who, steps // 256 * 256) - steps // 256 * 256 * share) < 8
        assert abs(found[who] - steps * share) < 8 + 40
    late = 10**12 + steps
    assert sum(turns.count(who, late) for who in range(len(weights))) == late
    assert turns.count(turns.at(late), late + 1) == turns.count(turns.at(late), late) + 1


@pytest.mark.parametrize("every", [1, 2, 3, 5, 8, 13, 21, 89, 100])
def test_what_happens_every_so_many_steps_meets_all_in_their_shares(every: int) -> None:
    turns = Interleaving([Fraction(share, 10) for share in (4, 2, 2, 1, 1)], 0)
    met = [turns.at(every * number) for number in range(4000)]
    same = np.mean(np.array(met[1:]) == np.array(met[:-1]))
    # 0.26 is what independent draws give; the points of the circle, unshuffled, 0.55 every 5th step and 0.97 every
    # 89th.
    assert same < 0.31
    assert [met.count(who) / len(met) for who in range(5)] == pytest.approx([0.4, 0.2, 0.2, 0.1, 0.1], abs=0.03)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 60), st.integers(0, 3), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_a_pass_holds_every_clip_once_and_reads_few_shards_at_a_time(
    sizes: list[int], window: int, seed: int, number: int
) -> None:
    shards = np.repeat(np.arange(len(sizes)), sizes)
    shuffle = Shuffle(shards, f"key {seed}", window)
    clips = [shuffle.at(number, place) for place in range(len(shards))]
    assert sorted(clips) == list(range(len(shards)))
    again = Shuffle(shards, f"key {seed}", window)
    for place in np.random.default_rng(seed).permutation(len(shards))[:20]:
        assert again.at(number, int(place)) == clips[place]
    # Any stretch as long as a window touches the shards of two windows at most: none is longer than a window and a
    # shard.
    for begin in range(0, len(clips), window):
        touched = np.unique(shards[clips[begin : begin + window]])
        assert sum(sizes[shard] for shard in touched) <= 2 * (window + max(sizes)) + max(sizes)


def test_a_shuffle_is_as_good_as_a_perfect_one_within_its_window_and_mixes_shards() -> None:
    shards = np.repeat(np.arange(200), 60)
    shuffle = Shuffle(shards, "key", 3000)
    clips = np.array([shuffle.at(0, place) for place in range(len(shards))])
    other = np.array([shuffle.at(1, place) for place in range(len(shards))])
    # Neighbours of one shard: 1 in 50 would be by chance within windows of 50 shards.
    assert np.mean(np.diff(shards[clips]) == 0) < 0.03
    # How far clips are from where they are stored: a third of all is what a perfect shuffle gives.
    assert np.abs(clips - np.arange(len(clips))).mean() > 0.3 * len(clips)
    for one in (clips, other):
        assert abs(np.corrcoef(one, np.arange(len(one)))[0, 1]) < 0.3
    assert abs(np.corrcoef(clips, other)[0, 1]) < 0.3


PLACE = ("layer", "shard", "offset", "bytes", "crc32")
SHAPES = [(81, 480, 832), (33, 480, 832), (81, 256, 256)]


def mixed(
    counts: dict[tuple[str, str], int], shares: dict[tuple[str, str], Fraction], step: Step, seed: int = 0, **more: Any
) -> tuple[Mixture, pa.Table]:
    """A mixture of streams with so many clips each; every clip teaches one task, shapes and references take turns."""
    rows = []
    for (dataset, task), count in counts.items():
        for n in range(count):
            name = f"{dataset} {task} {n}"
            frames, height, width = SHAPES[n % len(SHAPES)]
            rows.append(
                {
                    "dataset": dataset, "clip_id": hashlib.md5(name.encode()).hexdigest(), "tasks": [task],
                    "split": HELD_OUT if n == 3 else TRAIN,
                    "frames": frames, "height": height, "width": width, "references": n % 2,
                    "places": [dict(zip(PLACE, ("base", f"shards/{n // 7}.tar", 512 * n, 512, None), strict=True))],
                }
            )  # fmt: skip
    streams = tuple(Stream(*key, counts[key], share) for key, share in shares.items())
    parts = {task: (task,) if task != "r" else ("reference",) for _, task in counts}
    rows.sort(key=lambda row: (row["dataset"], row["clip_id"]))
    mixture = Mixture("h", seed, 0.0, step, more.get("begins", StartPoint()), {}, parts, streams)
    return mixture, pa.Table.from_pylist(rows, schema=SCHEMA)


def walk(order: Order, begin: int = 0) -> Any:
    position = begin
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
    return mixed(counts, shares, step, draw(st.integers(0, 3)))


@given(mixtures(), st.integers(0, 300))
@settings(max_examples=40, deadline=None)
def test_any_position_is_found_without_those_before(made: tuple[Mixture, pa.Table], begin: int) -> None:
    through = list(islice(walk(Order(*made)), begin + 20))
    assert list(islice(walk(Order(*made), begin), 20)) == through[begin:]
    jumping = Order(*made)
    for position in np.random.default_rng(begin).permutation(len(through))[:30]:
        batch = jumping.at(int(position))
        assert (batch, jumping.draw_clips(batch)) == through[position]


@given(mixtures())
@settings(max_examples=30, deadline=None)
def test_steps_hold_one_bucket_and_passes_hold_every_clip_once(made: tuple[Mixture, pa.Table]) -> None:
    mixture, samples = made
    order = Order(*made)
    m = mixture.step.micro_batches
    seen: Counter[tuple[Any, int, int]] = Counter()
    steps = order.steps_per_epoch
    while any(order.count_drawn(m * steps).get(bucket, 0) < order.count_clips(bucket) for bucket in order.buckets):
        steps *= 2
    found = list(islice(walk(order), m * steps))
    for number, (batch, draws) in enumerate(found):
        assert batch.bucket == found[number - number % m][0].bucket
        assert len(draws) == mixture.step.count_clips(batch.bucket.tokens)
        for draw in draws:
            row = samples.slice(draw.row, 1).to_pylist()[0]
            assert row["split"] == TRAIN
            assert (row["dataset"], row["tasks"]) == (batch.bucket.dataset, [batch.bucket.task])
            assert (row["frames"], row["height"], row["width"]) == (
                batch.bucket.frames, batch.bucket.height, batch.bucket.width,
            )  # fmt: skip
            assert batch.bucket.references == (row["references"] if batch.bucket.task == "r" else 0)
            seen[batch.bucket, draw.number, draw.row] += 1
    assert set(seen.values()) == {1}
    # A pass is begun when the one before is over, and no bucket and no clip is left out.
    for bucket in order.buckets:
        passes = Counter(number for one, number, _ in seen if one == bucket)
        assert all(count == order.count_clips(bucket) for number, count in passes.items() if number < max(passes))
    drawn = {row for _, _, row in seen}
    assert drawn == {row for row, split in enumerate(samples["split"].to_pylist()) if split == TRAIN}
    assert order.count_drawn(len(found)) == Counter(
        {bucket: sum(1 for one, *_ in seen if one == bucket) for bucket in order.buckets}
    )


@given(mixtures())
@settings(max_examples=30, deadline=None)
def test_shares_of_clips_are_exact_in_the_long_run(made: tuple[Mixture, pa.Table]) -> None:
    mixture, _ = made
    order = Order(*made)
    drawn = order.count_drawn(10**6 * mixture.step.micro_batches)
    for stream in mixture.streams:
        share = sum(count for bucket, count in drawn.items() if bucket.stream == stream.key) / sum(drawn.values())
        assert share == pytest.approx(float(stream.share), abs=1e-4)
        of_it = {bucket: count for bucket, count in drawn.items() if bucket.stream == stream.key}
        for bucket, count in of_it.items():
            clips = sum(order.count_clips(one) for one in of_it)
            assert count / sum(of_it.values()) == pytest.approx(order.count_clips(bucket) / clips, abs=1e-3)


def test_a_mixture_goes_on_where_an_older_one_stopped() -> None:
    counts = {("a", "t"): 50, ("a", "d"): 20}
    old = mixed(counts, {("a", "t"): Fraction(1, 2), ("a", "d"): Fraction(1, 2)}, Step(2))
    before = list(islice(walk(Order(*old)), 30))
    begins = StartPoint(30, Order(*old).count_drawn(30))
    new = mixed(counts, {("a", "t"): Fraction(9, 10), ("a", "d"): Fraction(1, 10)}, Step(4), begins=begins)
    # A block of steps, which are the ones that shares are exact over.
    after = list(islice(walk(Order(*new), 30), 4 * 256))
    assert parse(new[0].as_json()) == new[0]
    assert after[0][0].position == 30
    seen = Counter((batch.bucket, draw) for batch, draws in before + after for draw in draws)
    assert set(seen.values()) == {1}
    share = Counter(batch.bucket.task for batch, _ in after)
    assert share["t"] / len(after) == pytest.approx(0.9, abs=0.03)


def test_a_bucket_whose_clips_changed_begins_its_next_pass(tmp_path: Path) -> None:
    one = {("a", "t"): Fraction(1)}
    old = mixed({("a", "t"): 50}, one, Step(2))
    for name, (mixture, table) in {"old": old}.items():
        write(mixture, table, str(tmp_path / name))
    before = {(batch.bucket, draw.number) for batch, draws in islice(walk(Order(*old)), 60) for draw in draws}
    for clips in (44, 51, 60):
        new = mixed({("a", "t"): clips}, one, Step(2))
        found = begins(f"{tmp_path / 'old'}@60", Order(*new), new[1])
        again = Order(*mixed({("a", "t"): clips}, one, Step(2), begins=found))
        after = list(islice(walk(again, 60), 300))
        last = {bucket: max(number for other, number in before if other == bucket) for bucket in again.buckets}
        seen = Counter((batch.bucket, draw) for batch, draws in after for draw in draws)
        assert set(seen.values()) == {1}
        for bucket in again.buckets:
            numbers = Counter(draw.number for one_, draw in seen if one_ == bucket)
            changed = len(again.rows(bucket)) != len(Order(*old).rows(bucket))
            assert min(numbers) == last[bucket] + 1 if changed else min(numbers) >= last[bucket]
            # Whole passes, from the first on.
            full = [number for number in numbers if min(numbers) + (not changed) <= number < max(numbers)]
            assert full
            assert {numbers[number] for number in full} == {again.count_clips(bucket)}


def test_held_out_clips_of_a_task_that_is_not_trained_there_are_left_out() -> None:
    mixture, table = mixed({("a", "t"): 9, ("b", "t"): 9}, {("a", "t"): Fraction(1)}, Step(2))
    order = Order(mixture, table, HELD_OUT)
    assert {bucket.dataset for bucket in order.buckets} == {"a"}
    assert order.begins == StartPoint()


def test_what_stands_in_for_a_damaged_clip_is_of_its_bucket_and_another() -> None:
    made = mixed({("a", "t"): 40}, {("a", "t"): Fraction(1)}, Step(1, 100_000))
    order = Order(*made)
    batch = order.at(3)
    own = order.draw_clips(batch)[1]
    others = [order.draw_replacement(batch, 1, attempt) for attempt in range(1, order.count_clips(batch.bucket))]
    assert own.row not in {other.row for other in others}
    assert len({other.row for other in others}) == order.count_clips(batch.bucket) - 1
    assert {other.number for other in others} == {own.number}


def test_a_part_without_clips_is_said() -> None:
    made = mixed({("a", "t"): 2}, {("a", "t"): Fraction(1)}, Step(1))
    with pytest.raises(UsageError, match="no clip in its part 'held_out'"):
        Order(*made, HELD_OUT)
