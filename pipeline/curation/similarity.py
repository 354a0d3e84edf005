"""Which clips show the same: every two vectors compared, block by block, and the groups that the nearest pairs form.

Memory holds two blocks of vectors, what is near between them, and the groups (about 300 bytes a clip that has a match);
the vectors may lie in a file (`numpy.memmap`), and the near pairs lie in DuckDB, which spills to disk. The result
depends on the vectors, their ids and their sources alone: blocks are only a first sieve in float32, and what passes it
is measured without any rounding of sums (products of float16 numbers up to 1 are multiples of 2^-48, so float64 adds
thousands of them exactly, in whatever order).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.formats.embeddings import Vectors

# Vectors of one block: its product with another takes 16 MB, and fills the cores well enough.
BLOCK = 2048
# How far below the threshold the sieve lets pairs through: more than float32 and the lengths of the vectors can be off.
_MARGIN = 2e-3
# Pairs that are measured exactly at once: 40 MB at 1280 numbers each.
_PAIRS = 2048

_NEAR = pa.schema(
    [("a", pa.int64()), ("b", pa.int64()), ("source_a", pa.int64()), ("source_b", pa.int64()), ("cosine", pa.float64())]
)


def near(
    vectors: Vectors, sources: NDArray[np.int64], threshold: float, block: int = BLOCK
) -> Iterator[tuple[int, pa.Table]]:
    """The pairs of clips of different sources whose cosine is `threshold` or more, in pieces.

    Of the pairs that a clip has with the clips of one source in a block, the nearest comes, and others only if they
    are the nearest for those. `sources`: a number per clip, the same for clips of one source. Yields (pairs compared
    since the last time, table of a < b, source_a, source_b and cosine).
    """
    for top in range(0, len(vectors), block):
        rows = vectors[top : top + block].astype(np.float32)
        for left in range(top, len(vectors), block):
            columns = rows if left == top else vectors[left : left + block].astype(np.float32)
            roughly = rows @ columns.T
            a, b = np.nonzero(roughly >= threshold - _MARGIN)
            rough = roughly[a, b].astype(np.float64)
            a, b = a + top, b + left
            wanted = (a < b) & (sources[a] != sources[b])
            a, b, rough = a[wanted], b[wanted], rough[wanted]
            likely = _nearest(a, sources[b], rough, _MARGIN) | _nearest(b, sources[a], rough, _MARGIN)
            a, b = a[likely], b[likely]
            exact = cosines(vectors, a, b)
            passed = (exact >= threshold) & (_nearest(a, sources[b], exact) | _nearest(b, sources[a], exact))
            a, b = a[passed], b[passed]
            size = len(rows) * (len(rows) - 1) // 2 if left == top else len(rows) * len(columns)
            yield size, pa.table([a, b, sources[a], sources[b], exact[passed]], schema=_NEAR)


def _nearest(
    clip: NDArray[np.int64], source: NDArray[np.int64], cosine: NDArray[np.float64], margin: float = 0.0
) -> NDArray[np.bool_]:
    """Where the cosine is the highest, or within `margin` of it, that the clip has with any clip of the source."""
    if not len(clip):
        return np.zeros(0, bool)
    order = np.lexsort((-cosine, source, clip))
    first = np.concatenate([[True], (np.diff(clip[order]) != 0) | (np.diff(source[order]) != 0)])
    best = np.empty_like(cosine)
    best[order] = cosine[order][first][np.cumsum(first) - 1]
    near: NDArray[np.bool_] = cosine >= best - margin
    return near


def cosines(vectors: Vectors, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float64]:
    """The cosine of vectors a[k] and b[k] for every k: the same bits on every machine and in every order."""
    found = np.empty(len(a))
    for start in range(0, len(a), _PAIRS):
        piece = slice(start, start + _PAIRS)
        one, other = vectors[a[piece]].astype(np.float64), vectors[b[piece]].astype(np.float64)
        lengths = (one * one).sum(axis=1) * (other * other).sum(axis=1)
        found[piece] = (one * other).sum(axis=1) / np.sqrt(lengths)
    return found


def matches(con: duckdb.DuckDBPyConnection, pairs: Iterable[pa.Table]) -> Iterator[tuple[int, int]]:
    """Of the pairs that `near` finds those that are each other's best match between their two sources, nearest first.

    A re-encoded copy has the same moments as its original: each pairs with its own, and not crosswise. Of equals the
    one that comes first is the best. The pairs go into a table `near` of the connection.
    """
    con.register("given_pairs", _NEAR.empty_table())
    con.execute("CREATE TABLE near AS FROM given_pairs")
    for some in pairs:
        con.register("given_pairs", some)
        con.execute("INSERT INTO near FROM given_pairs")
    con.unregister("given_pairs")
    cursor = con.execute(
        "WITH directed AS (SELECT a AS here, b AS there, source_b AS source, cosine FROM near "
        "UNION ALL SELECT b, a, source_a, cosine FROM near), "
        "best AS (SELECT here, there, cosine FROM directed "
        "QUALIFY row_number() OVER (PARTITION BY here, source ORDER BY cosine DESC, there) = 1) "
        "SELECT one.here, one.there FROM best one JOIN best other ON one.here = other.there AND one.there = other.here "
        "WHERE one.here < one.there ORDER BY one.cosine DESC, one.here, one.there"
    )
    while found := cursor.fetchmany(10_000):
        yield from found


def groups(pairs: Iterable[tuple[int, int]], sources: NDArray[np.int64]) -> list[list[int]]:
    """The groups of two clips and more that pairs connect, sorted; pairs come nearest first.

    A pair that would bring two clips of one source into a group is left out: they are different moments, and a third
    video that runs half a clip late must not make them one.
    """
    # Clip -> its group, which is source -> clip.
    group: dict[int, dict[int, int]] = {}
    for pair in pairs:
        small, large = sorted((group.setdefault(clip, {int(sources[clip]): clip}) for clip in pair), key=len)
        if small.keys().isdisjoint(large.keys()):
            large |= small
            for clip in small.values():
                group[clip] = large
    whole = {id(members): members for members in group.values() if len(members) > 1}
    return sorted(sorted(members.values()) for members in whole.values())


def around_the_best(
    chains: Iterable[list[int]], rank: NDArray[np.int64], vectors: Vectors, threshold: float
) -> Iterator[tuple[list[int], NDArray[np.float64]]]:
    """Groups in which every clip shows the same as the best: (members, best first; the cosine of each to the best).

    A chain of pairs may lead from a clip to one that shows something else, by steps that are each small. So the best
    of a chain takes those that are near to itself, and the best of the rest begins a group of its own. `rank`: a number
    per clip, the lower the better.
    """
    for chain in chains:
        left = np.array(sorted(chain, key=lambda clip: int(rank[clip])), np.int64)
        while len(left) > 1:
            found = cosines(vectors, np.full(len(left), left[0]), left)
            near = found >= threshold
            near[0] = True
            if near.sum() > 1:
                yield left[near].tolist(), found[near]
            left = left[~near]
