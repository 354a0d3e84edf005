"""Finds the clips that show the same: compares every two vectors, block by block, and groups the nearest pairs.

Memory holds two blocks of vectors, the near pairs between them, and the groups (about 300 bytes a clip with a match);
the vectors may lie in a file (`numpy.memmap`), and the near pairs lie in DuckDB, which spills to disk. The result
depends on the vectors, their ids and their sources alone: blocks are only a first sieve in float32, and pairs that pass
are measured without any rounding of sums (products of float16 numbers up to 1 are multiples of 2^-48, so float64 adds
thousands of them exactly, in any order).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.formats.embeddings import Vectors

# Vectors of one block: its product with another takes 16 MB, and keeps the cores busy.
BLOCK = 2048
# How far below the threshold the sieve lets pairs through: more than float32 and the lengths of the vectors can be off.
_MARGIN = 2e-3
# Pairs that are measured exactly at once: 40 MB at 1280 numbers each.
_PAIRS = 2048

_NEAR = pa.schema(
    [("a", pa.int64()), ("b", pa.int64()), ("source_a", pa.int64()), ("source_b", pa.int64()), ("cosine", pa.float64())]
)


def find_near_pairs(
    vectors: Vectors, sources: NDArray[np.int64], threshold: float, block: int = BLOCK
) -> Iterator[tuple[int, pa.Table]]:
    """Find the pairs of clips of different sources with a cosine of `threshold` or more, in pieces.

    Of the pairs that a clip has with the clips of one source in a block, the nearest comes, and others only if they are
    the nearest for their other clip. `sources`: a number per clip, the same for clips of one source. Yields (pairs
    compared since the last time, table of a < b, source_a, source_b and cosine).
    """
    for first_row in range(0, len(vectors), block):
        rows = vectors[first_row : first_row + block].astype(np.float32)
        for first_column in range(first_row, len(vectors), block):
            columns = (
                rows if first_column == first_row else vectors[first_column : first_column + block].astype(np.float32)
            )
            products = rows @ columns.T
            clips_a, clips_b = np.nonzero(products >= threshold - _MARGIN)
            approximate = products[clips_a, clips_b].astype(np.float64)
            clips_a, clips_b = clips_a + first_row, clips_b + first_column
            distinct = (clips_a < clips_b) & (sources[clips_a] != sources[clips_b])
            clips_a, clips_b, approximate = clips_a[distinct], clips_b[distinct], approximate[distinct]
            likely = _mark_nearest(clips_a, sources[clips_b], approximate, _MARGIN) | _mark_nearest(
                clips_b, sources[clips_a], approximate, _MARGIN
            )
            clips_a, clips_b = clips_a[likely], clips_b[likely]
            exact = cosines(vectors, clips_a, clips_b)
            passed = (exact >= threshold) & (
                _mark_nearest(clips_a, sources[clips_b], exact) | _mark_nearest(clips_b, sources[clips_a], exact)
            )
            clips_a, clips_b = clips_a[passed], clips_b[passed]
            count = len(rows) * (len(rows) - 1) // 2 if first_column == first_row else len(rows) * len(columns)
            yield count, pa.table([clips_a, clips_b, sources[clips_a], sources[clips_b], exact[passed]], schema=_NEAR)


def _mark_nearest(
    clip: NDArray[np.int64], source: NDArray[np.int64], cosine: NDArray[np.float64], margin: float = 0.0
) -> NDArray[np.bool_]:
    """Where the cosine is the clip's highest with any clip of the source, or within `margin` of it."""
    if not len(clip):
        return np.zeros(0, bool)
    order = np.lexsort((-cosine, source, clip))
    first = np.concatenate([[True], (np.diff(clip[order]) != 0) | (np.diff(source[order]) != 0)])
    best = np.empty_like(cosine)
    best[order] = cosine[order][first][np.cumsum(first) - 1]
    nearest: NDArray[np.bool_] = cosine >= best - margin
    return nearest


def cosines(vectors: Vectors, clips_a: NDArray[np.int64], clips_b: NDArray[np.int64]) -> NDArray[np.float64]:
    """The cosines of vectors clips_a[k] and clips_b[k]: the same bits on every machine and in every order."""
    result = np.empty(len(clips_a))
    for start in range(0, len(clips_a), _PAIRS):
        piece = slice(start, start + _PAIRS)
        vectors_a, vectors_b = vectors[clips_a[piece]].astype(np.float64), vectors[clips_b[piece]].astype(np.float64)
        lengths = (vectors_a * vectors_a).sum(axis=1) * (vectors_b * vectors_b).sum(axis=1)
        result[piece] = (vectors_a * vectors_b).sum(axis=1) / np.sqrt(lengths)
    return result


def find_matches(con: duckdb.DuckDBPyConnection, pairs: Iterable[pa.Table]) -> Iterator[tuple[int, int]]:
    """Find the pairs that are each other's best match between their two sources, nearest first.

    `pairs`: those of `find_near_pairs`; they go into a table `near` of the connection. A re-encoded copy has the same
    moments as its original: each pairs with its own, and not crosswise. Of equals, the first is the best.
    """
    con.register("new_pairs", _NEAR.empty_table())
    con.execute("CREATE TABLE near AS FROM new_pairs")
    for piece in pairs:
        con.register("new_pairs", piece)
        con.execute("INSERT INTO near FROM new_pairs")
    con.unregister("new_pairs")
    cursor = con.execute(
        "WITH directed AS (SELECT a AS clip, b AS mate, source_b AS source, cosine FROM near "
        "UNION ALL SELECT b, a, source_a, cosine FROM near), "
        "best AS (SELECT clip, mate, cosine FROM directed "
        "QUALIFY row_number() OVER (PARTITION BY clip, source ORDER BY cosine DESC, mate) = 1) "
        "SELECT x.clip, x.mate FROM best x JOIN best y ON x.clip = y.mate AND x.mate = y.clip "
        "WHERE x.clip < x.mate ORDER BY x.cosine DESC, x.clip, x.mate"
    )
    while rows := cursor.fetchmany(10_000):
        yield from rows


def form_groups(pairs: Iterable[tuple[int, int]], sources: NDArray[np.int64]) -> list[list[int]]:
    """Form the groups of two clips and more that pairs connect, sorted; pairs come nearest first.

    A pair that would bring two clips of one source into a group is ignored: they are different moments, and a third
    video that runs half a clip late must not join them.
    """
    # Clip -> its group, which is source -> clip.
    group: dict[int, dict[int, int]] = {}
    for pair in pairs:
        small, large = sorted((group.setdefault(clip, {int(sources[clip]): clip}) for clip in pair), key=len)
        if small.keys().isdisjoint(large.keys()):
            large |= small
            for clip in small.values():
                group[clip] = large
    merged = {id(members): members for members in group.values() if len(members) > 1}
    return sorted(sorted(members.values()) for members in merged.values())


def split_around_best(
    chains: Iterable[list[int]], rank: NDArray[np.int64], vectors: Vectors, threshold: float
) -> Iterator[tuple[list[int], NDArray[np.float64]]]:
    """Split chains into groups of clips that show the same as the best: (members, best first; their cosines to it).

    A chain of pairs may lead, by small steps, from a clip to one that shows something else. So the best of a chain
    takes those that are near itself, and the best of the rest begins a group of its own. `rank`: a number per clip, the
    lower the better.
    """
    for chain in chains:
        remaining = np.array(sorted(chain, key=lambda clip: int(rank[clip])), np.int64)
        while len(remaining) > 1:
            similarities = cosines(vectors, np.full(len(remaining), remaining[0]), remaining)
            close = similarities >= threshold
            close[0] = True
            if close.sum() > 1:
                yield remaining[close].tolist(), similarities[close]
            remaining = remaining[~close]
