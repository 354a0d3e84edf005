"""Which clips show the same: every two vectors compared, block by block, and the groups that the nearest pairs form.

Memory holds two blocks of vectors and what is near between them; the vectors may lie in a file (`numpy.memmap`), and
the near pairs lie in DuckDB, which spills to disk. The result depends on the vectors, their ids and their sources
alone: blocks are only a first sieve in float32, and what passes it is measured without any rounding of sums (products
of float16 numbers up to 1 are multiples of 2^-48, so float64 adds thousands of them exactly, in whatever order).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Vectors = NDArray[np.float16]
"""float16 [N, D]: unit vectors, up to rounding."""

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

    `sources`: a number per clip, the same for clips of one source. Yields (pairs compared since the last time, table
    of a < b, source_a, source_b and cosine).
    """
    for top in range(0, len(vectors), block):
        rows = vectors[top : top + block].astype(np.float32)
        for left in range(top, len(vectors), block):
            columns = rows if left == top else vectors[left : left + block].astype(np.float32)
            a, b = np.nonzero(rows @ columns.T >= threshold - _MARGIN)
            a, b = a + top, b + left
            wanted = (a < b) & (sources[a] != sources[b])
            a, b = a[wanted], b[wanted]
            exact = cosines(vectors, a, b)
            passed = exact >= threshold
            a, b = a[passed], b[passed]
            size = len(rows) * (len(rows) - 1) // 2 if left == top else len(rows) * len(columns)
            yield size, pa.table([a, b, sources[a], sources[b], exact[passed]], schema=_NEAR)


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
