"""Tests near duplicates by vectors: the same groups for any order, parts and blocks, in little memory."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import normalize, table

from pipeline.curation import similarity
from pipeline.formats import embeddings
from pipeline.formats.embeddings import Vectors
from pipeline.storage.folder import Folder

MODEL = "made-up-1"
# Clips as (source, vector): few sources and few directions, so that equal and similar ones are common.
CLIPS = st.lists(
    st.tuples(st.integers(0, 3), st.lists(st.integers(0, 3), min_size=4, max_size=4).filter(any)), max_size=12
)


def identity(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()[:32]


def groups(vectors: Vectors, sources: list[int], threshold: float = 0.9, block: int = 3) -> list[list[int]]:
    """The groups, computed as in `dedup`."""
    numbers = np.array(sources, np.int64)
    pairs = (matches for _, matches in similarity.find_near_pairs(vectors, numbers, threshold, block))
    return similarity.form_groups(similarity.find_matches(duckdb.connect(), pairs), numbers)


def expected(clips: dict[str, tuple[int, Any]], threshold: float) -> set[frozenset[str]]:
    """The same groups by the simplest possible code."""
    cosine = {}
    for first, second in combinations(sorted(clips), 2):
        (first_source, first_vector), (second_source, second_vector) = clips[first], clips[second]
        value = float(
            first_vector @ second_vector / np.sqrt((first_vector @ first_vector) * (second_vector @ second_vector))
        )
        if first_source != second_source and value >= threshold:
            cosine[first, second] = cosine[second, first] = value

    def best(clip: str, source: int) -> str:
        neighbours = [second for first, second in cosine if first == clip and clips[second][0] == source]
        return min(neighbours, key=lambda second: (-cosine[clip, second], second))

    mutual = [
        (first, second)
        for first, second in cosine
        if first < second and best(first, clips[second][0]) == second and best(second, clips[first][0]) == first
    ]
    group = {clip: frozenset([clip]) for clip in clips}
    for first, second in sorted(mutual, key=lambda pair: (-cosine[pair], pair)):
        merged = group[first] | group[second]
        if len({clips[clip][0] for clip in merged}) == len(merged):
            group |= dict.fromkeys(merged, merged)
    return {members for members in group.values() if len(members) > 1}


@settings(deadline=None, max_examples=60)
@given(CLIPS, st.randoms(use_true_random=False), st.integers(1, 7), st.integers(1, 5), st.sampled_from([0.6, 0.9, 1.0]))
def test_order_parts_and_blocks_change_nothing(
    clips: list[Any], random: Any, block: int, part: int, threshold: float
) -> None:
    ids = [identity(number) for number in range(len(clips))]
    vectors = normalize([vector for _, vector in clips]) if clips else np.empty((0, 4), np.float16)
    by_id = {
        clip: (source, vector.astype(np.float64))
        for clip, (source, _), vector in zip(ids, clips, vectors, strict=True)
    }  # fmt: skip
    # Clips come in any order, in parts of any size, and some of them twice.
    order = list(range(len(ids)))
    random.shuffle(order)
    order += order[: part - 1]
    with TemporaryDirectory() as name:
        out = Folder(name)
        for number, start in enumerate(range(0, len(order), part)):
            part_rows = order[start : start + part]
            embeddings.append_part(
                out, "0123456789ab", number, MODEL, table([ids[i] for i in part_rows], vectors[part_rows])
            )
        sorted_ids = sorted(ids)
        loaded = embeddings.load(out, MODEL, pa.chunked_array([sorted_ids], pa.string()), 4, Path(name, "vectors"))
        found_groups = groups(loaded, [by_id[clip][0] for clip in sorted_ids], threshold, block)
    assert {frozenset(sorted_ids[i] for i in group) for group in found_groups} == expected(by_id, threshold)


def test_each_moment_of_a_copy_pairs_with_its_own() -> None:
    moments = np.array([[10, 1, 0], [10, 0, 1], [10, -1, -1]])
    vectors = normalize([*moments, *(moments + np.array([0.1, 0.1, 0]))])
    assert similarity.cosines(vectors, np.array([0]), np.array([1]))[0] > 0.9
    assert groups(vectors, [0, 0, 0, 1, 1, 1]) == [[0, 3], [1, 4], [2, 5]]


def test_moments_of_one_source_are_never_duplicates() -> None:
    assert groups(normalize([[1, 0], [1, 0], [1, 0]]), [0, 0, 0]) == []
    assert groups(normalize([[1, 0], [1, 0], [1, 0]]), [0, 1, 0]) == [[0, 1]]


def test_a_copy_that_runs_late_does_not_join_two_moments() -> None:
    """C is nearest to the first moment of A and to the second moment of B, which is A's copy."""
    vectors = normalize([[10, 0, 0], [10, 3, 0], [10, 0, 0.1], [10, 3, 0.1], [10, 1.2, 0]])
    assert groups(vectors, [0, 0, 1, 1, 2]) == [[0, 2, 4], [1, 3]]
    vectors = normalize([[10, 0, 0], [10, 3, 2], [10, 0, 2], [10, 3, 0], [10, 1.5, 0]])
    for group in groups(vectors, [0, 0, 1, 1, 2], 0.8):
        assert len({[0, 0, 1, 1, 2][clip] for clip in group}) == len(group)


def test_a_chain_of_likeness_is_no_likeness() -> None:
    """Each of four vectors is rotated from the one before by the same angle; the first and the last are dissimilar."""
    vectors = normalize([[np.cos(turn), np.sin(turn)] for turn in np.radians([0, 30, 60, 90])])
    (chain,) = groups(vectors, [0, 1, 2, 3], 0.85)
    rank = np.array([1, 0, 2, 3])
    subgroups = list(similarity.split_around_best([chain], rank, vectors, 0.85))
    assert [members for members, _ in subgroups] == [[1, 0, 2]], "the last one is alone"
    for _, cosines in subgroups:
        assert cosines[0] == pytest.approx(1)
        assert (cosines >= 0.85).all()


def test_the_threshold_is_exact() -> None:
    vectors = normalize([[1, 0], [0.93, np.sqrt(1 - 0.93**2)]])
    exact = similarity.cosines(vectors, np.array([0]), np.array([1]))[0]
    assert groups(vectors, [0, 1], exact) == [[0, 1]]
    assert groups(vectors, [0, 1], np.nextafter(exact, 2)) == []


def test_memory_holds_blocks_and_not_all_pairs(tmp_path: Path) -> None:
    count, size = 2000, 64
    vectors = np.memmap(tmp_path / "vectors", np.float16, "w+", shape=(count, size))
    rng = np.random.default_rng(1)
    vectors[:] = normalize(rng.standard_normal((count, size)))
    # Every thousandth vector has a copy in another source.
    vectors[1::1000] = vectors[::1000]
    sources = np.arange(count)

    def count_pairs() -> Iterator[pa.Table]:
        compared = 0
        for pairs, matches in similarity.find_near_pairs(vectors, sources, 0.9, 100):
            compared += pairs
            yield matches
        assert compared == count * (count - 1) // 2

    tracemalloc.start()
    try:
        found_groups = similarity.form_groups(similarity.find_matches(duckdb.connect(), count_pairs()), sources)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found_groups == [[number, number + 1] for number in range(0, count, 1000)]
    # All pairs would be 16 MB, all vectors in float32 half a MB.
    assert peak < 300_000
