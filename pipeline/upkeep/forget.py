"""Takedown: when somebody may no longer be in a dataset, his rows and bytes go for good, and a record stays.

The order makes it safe to kill at any moment. New shards without the samples come first (nobody names them yet); then
one part moves the survivors and records what is forgotten, from which moment the views no longer show it; then
`finish_forgetting` deletes the old shards and takes the rows out of older parts. It asks the catalog what is left, so
that whoever comes next can finish.
"""

from __future__ import annotations

import json
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pipeline.catalog.catalog import Catalog, new_run_id, open_dataset, utc_now, values
from pipeline.catalog.cleanup import FOLDERS, find_unreferenced
from pipeline.catalog.dataset import lock_catalog
from pipeline.catalog.erase import finish_forgetting
from pipeline.catalog.find import find
from pipeline.formats.schema import DUPLICATES, PREVIEW, SAMPLE
from pipeline.formats.shards import Place, ShardWriter, compute_digest, digest_in_name, read_sample
from pipeline.storage.folder import Folder
from pipeline.storage.scratch import Scratch
from pipeline.upkeep.mark_damaged import committed, lose


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What is gone: the URIs of sources and the ids of clips; `rewritten` shards were made anew without them, and
    `damaged` ones could not be, so that their other clips count as failed."""

    out: str
    sources: list[str]
    clips: list[str]
    rewritten: int
    damaged: list[str]

    def as_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))


def forget(out: str, what: str, reason: str | None = None) -> Forgotten:
    """Remove a clip, or a source with all its clips and every source of the same content, for good.

    `what` is a clip id or a source, as in `explain`. The content is refused from then on. Raises `UsageError` when
    there is no such thing, `RunError` when another run is writing to OUT.
    """
    folder = open_dataset(out)
    with Scratch() as scratch, lock_catalog(folder, scratch.path) as catalog:
        finish_forgetting(catalog)
        con = catalog.connect()
        record = _record(con, what, reason)
        clips = sorted({row["clip_id"] for row in record if row["clip_id"]})
        moved, rewritten, damaged = _survivors(catalog, con, clips, scratch.path)
        # Whatever exists before the commit and is named by nobody after it, an older run has left behind.
        before = {f"{name}/{entry.name}" for name in FOLDERS for entry in folder.list_files(name)}
        schema = moved.schema
        catalog.commit(pa.concat_tables([moved, pa.Table.from_pylist(record, schema=schema)]))
        finish_forgetting(catalog)
        for name, _ in find_unreferenced(catalog):
            if name in before:
                folder.delete(name)
    sources = sorted({row["source_uri"] for row in record if not row["clip_id"]})
    return Forgotten(out, sources, clips, rewritten, damaged)


def _record(con: duckdb.DuckDBPyConnection, what: str, reason: str | None) -> list[dict[str, Any]]:
    """The rows that say what is forgotten: one per clip, and one per source and content it had."""
    found = find(con, what)
    stamp = {"kind": "forgotten", "detail": reason, "started": utc_now()}
    if found.clip_id:
        clips = values(
            con, "SELECT DISTINCT clip_id, source_uri, source_hash FROM clips WHERE clip_id = ?", [found.clip_id]
        )
        return [stamp | row for row in clips[:1]]
    con.execute(
        "CREATE TEMP TABLE content AS SELECT DISTINCT source_hash FROM parts "
        "WHERE kind = 'source' AND source_uri = ? AND source_hash IS NOT NULL",
        [found.source_uri],
    )
    where = "(source_uri = ? OR source_hash IN (FROM content))"
    sources = values(
        con,
        "SELECT DISTINCT NULL AS clip_id, source_uri, source_hash FROM parts "
        f"WHERE kind = 'source' AND {where} ORDER BY ALL",
        [found.source_uri],
    )
    clips = values(
        con,
        "SELECT clip_id, any_value(source_uri) AS source_uri, any_value(source_hash) AS source_hash FROM parts "
        f"WHERE kind = 'clip' AND {where} GROUP BY clip_id ORDER BY ALL",
        [found.source_uri],
    )
    return [stamp | row for row in [*sources, *clips]]


def _survivors(
    catalog: Catalog, con: duckdb.DuckDBPyConnection, clips: list[str], scratch: Path
) -> tuple[pa.Table, int, list[str]]:
    """The rows of the clips that share a shard with the forgotten ones, with their new places; how many shards were
    written anew, and which were damaged."""
    con.execute("CREATE TEMP TABLE going AS SELECT unnest(?::VARCHAR[]) AS clip_id", [clips])
    # Any row counts, not only the current one: an older copy of a clip may lie in a shard that is still in use.
    con.execute(
        "CREATE TEMP TABLE affected AS SELECT DISTINCT name FROM (SELECT unnest([shard, preview_shard]) AS name "
        "FROM parts WHERE kind = 'clip' AND clip_id IN (FROM going)) WHERE name IS NOT NULL ORDER BY name"
    )
    arrow = con.sql(
        "SELECT * FROM clips WHERE clip_id NOT IN (FROM going) "
        "AND (shard IN (FROM affected) OR preview_shard IN (FROM affected)) ORDER BY clip_id, layer"
    ).to_arrow_table()
    rows, rewritten, damaged = arrow.to_pylist(), 0, []
    # What a group of near duplicates is without one of them, the next `dedup` says.
    mates = con.sql(
        f"SELECT * REPLACE ({', '.join(f'NULL AS {name}' for name in DUPLICATES)}) FROM clips "
        "WHERE clip_id NOT IN (FROM going) AND duplicate_group IN "
        "(SELECT duplicate_group FROM clips WHERE clip_id IN (FROM going)) ORDER BY clip_id"
    )
    rows += mates.to_arrow_table().to_pylist()
    run_id = new_run_id()
    for shard in [row["name"] for row in values(con, "FROM affected")]:
        for place in (SAMPLE, PREVIEW):
            inside = [row for row in rows if row[place[0]] == shard]
            if not inside:
                continue
            rewritten += 1
            new = _rewritten(catalog.out, shard, inside, place, scratch, run_id)
            if new is None:
                damaged.append(shard)
            for row in inside:
                _move(row, place, new)
    return pa.Table.from_pylist(rows, schema=committed(arrow.schema)), rewritten - len(damaged), damaged


def _rewritten(
    out: Folder, shard: str, rows: list[dict[str, Any]], place: tuple[str, ...], scratch: Path, run_id: str
) -> dict[str, Place] | None:
    """A shard made anew with the samples of these rows alone, or None where it is damaged: copied into a shard with
    a checksum of its own, damage would look sound."""
    copy = scratch / "old.tar"
    folder = shard.partition("/")[0]
    try:
        out.download(shard, copy)
        with copy.open("rb") as file:
            if compute_digest(file) != digest_in_name(shard):
                return None
        local, writer = Folder(str(scratch)), ShardWriter(scratch, folder, run_id)
        for row in sorted(rows, key=lambda row: int(row[place[1]])):
            writer.add(row["clip_id"], read_sample(local, row["clip_id"], copy.name, row[place[1]], row[place[2]]))
        return writer.close(out)
    except (FileNotFoundError, KeyError, tarfile.TarError):
        return None
    finally:
        copy.unlink(missing_ok=True)


def _move(row: dict[str, Any], place: tuple[str, ...], new: dict[str, Place] | None) -> None:
    if new is None:
        lose(row, place, "forget", "the shard it was in is damaged, and had to go when another clip was forgotten")
    else:
        at = new[row["clip_id"]]
        row |= dict(zip(place, (at.shard, at.offset, at.size), strict=True))


def summary(done: Forgotten) -> str:
    """What is gone, for people."""
    sources, clips = len(done.sources), len(done.clips)
    named = f": {', '.join(done.sources or done.clips)}" if sources + clips else ""
    text = f"forgot {sources} sources and {clips} clips for good{named}"
    text += f"; {done.rewritten} shards were written anew" if done.rewritten else ""
    if done.damaged:
        text += f"\n{len(done.damaged)} damaged shards are gone; `vdot-data retry` makes their other clips again"
    return text
