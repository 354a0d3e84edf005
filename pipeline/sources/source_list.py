"""The listing of one run, streamed to disk: a bucket of millions of sources is never in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UsageError
from pipeline.sources.expand import Source

SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("stamp", pa.string()),
        ("manifest", pa.string()),
        ("content", pa.binary()),
    ]
)
_BATCH = 10_000


@dataclass(frozen=True, slots=True)
class Listing:
    """A Parquet file of sources, how many rows it has, and the names of their manifest columns."""

    path: Path
    count: int
    manifest: tuple[str, ...]


def write(sources: Iterable[Source], limit: int | None, path: Path) -> Listing:
    """Write the sources (or the first `limit`) to `path`. Raises what listing them raises, and `UsageError` when
    manifests contradict each other about a source."""
    columns: dict[str, None] = {}
    position = 0
    remaining = islice(sources, limit)
    with pq.ParquetWriter(path, SCHEMA) as writer:
        while batch := list(islice(remaining, _BATCH)):
            rows = []
            for source in batch:
                position += 1
                columns |= dict.fromkeys(source.manifest)
                row = {"position": position, "uri": source.uri, "size": source.size, "stamp": source.stamp}
                rows.append(row | {"manifest": json.dumps(source.manifest), "content": source.content})
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
    if columns:
        _check_manifests(path)
    return Listing(path, position, tuple(columns))


def _check_manifests(path: Path) -> None:
    conflicts = duckdb.connect().execute(
        "SELECT uri, min(manifest), max(manifest) FROM read_parquet(?) WHERE manifest <> '{}' "
        "GROUP BY uri HAVING min(manifest) <> max(manifest) LIMIT 1",
        [str(path)],
    )
    for uri, first, second in conflicts.fetchall():
        raise UsageError(f"manifests say different things of {uri}: {first} and {second}; keep one of them")
