"""Takedown: removes rows and bytes from a dataset for good, and keeps a record of it.

The order makes it safe to kill at any moment. New shards without the samples come first (no row names them yet); then
one part moves the survivors and records what is forgotten, and from then on the views no longer show it; then
`finish_forgetting` deletes the old shards and removes the rows from older parts. It asks the catalog what remains, so
any later run can finish it.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pipeline.catalog.catalog import Catalog, new_run_id, open_dataset, utc_now, values
from pipeline.catalog.cleanup import FOLDERS, find_unfinished, find_unreferenced
from pipeline.catalog.dataset import lock_catalog
from pipeline.catalog.erase import REPORT, finish_forgetting
from pipeline.catalog.find import find
from pipeline.catalog.predicates import kind_sql
from pipeline.formats.schema import DUPLICATES, PREVIEW, SAMPLE, Kind
from pipeline.formats.shards import Place, ShardWriter, compute_digest, digest_in_name, read_sample
from pipeline.storage.folder import Folder
from pipeline.storage.scratch import Scratch
from pipeline.upkeep.mark_damaged import clear_place, use_catalog_types


@dataclass(frozen=True, slots=True)
class ForgetSummary:
    """What was removed: the URIs of sources and the ids of clips; `rewritten` shards were written again without them,
    and `damaged` ones could not be, so that their other clips count as failed. `report`: OUT held a report."""

    out: str
    sources: list[str]
    clips: list[str]
    rewritten: int
    damaged: list[str]
    report: bool = False


def forget(out: str, target: str, reason: str | None = None) -> ForgetSummary:
    """Remove a clip, or a source with all its clips and every source of the same content, for good.

    `target` is a clip id or a source, as in `explain`. The content is refused from then on. Raises `UsageError` when
    there is no such clip or source, `RunError` when another run is writing to OUT.
    """
    folder = open_dataset(out)
    with Scratch() as scratch, lock_catalog(folder, scratch.path) as catalog:
        has_report = folder.exists(REPORT)
        finish_forgetting(catalog)
        con = catalog.connect()
        record = _build_record(con, target, reason)
        clips = sorted({row["clip_id"] for row in record if row["clip_id"]})
        moved, rewritten, damaged = _rewrite_survivors(catalog, con, clips, scratch.path)
        # A file that exists before the commit and that no row names after it was left behind by an older run.
        earlier_names = {f"{name}/{entry.name}" for name in FOLDERS for entry in folder.list_files(name)}
        earlier_names |= {name for name, _ in find_unfinished(catalog)}
        schema = moved.schema
        catalog.commit(pa.concat_tables([moved, pa.Table.from_pylist(record, schema=schema)]))
        finish_forgetting(catalog)
        for name, _ in find_unreferenced(catalog) + find_unfinished(catalog):
            # Only `report` leaves an unfinished file in OUT itself, at any time: with pictures of the clips.
            if name in earlier_names or "/" not in name:
                folder.delete(name)
    sources = sorted({row["source_uri"] for row in record if not row["clip_id"]})
    return ForgetSummary(out, sources, clips, rewritten, damaged, has_report)


def _build_record(con: duckdb.DuckDBPyConnection, name: str, reason: str | None) -> list[dict[str, Any]]:
    """Build the rows that record what is forgotten: one per clip, and one per source and content it had."""
    target = find(con, name)
    stamp = {"kind": Kind.FORGOTTEN, "detail": reason, "started": utc_now()}
    if target.clip_id:
        clips = values(
            con, "SELECT DISTINCT clip_id, source_uri, source_hash FROM clips WHERE clip_id = ?", [target.clip_id]
        )
        return [stamp | row for row in clips[:1]]
    con.execute(
        "CREATE TEMP TABLE content AS SELECT DISTINCT source_hash FROM parts "
        f"WHERE {kind_sql(Kind.SOURCE)} AND source_uri = ? AND source_hash IS NOT NULL",
        [target.source_uri],
    )
    where = "(source_uri = ? OR source_hash IN (FROM content))"
    sources = values(
        con,
        "SELECT DISTINCT NULL AS clip_id, source_uri, source_hash FROM parts "
        f"WHERE {kind_sql(Kind.SOURCE)} AND {where} ORDER BY ALL",
        [target.source_uri],
    )
    clips = values(
        con,
        "SELECT clip_id, any_value(source_uri) AS source_uri, any_value(source_hash) AS source_hash FROM parts "
        f"WHERE {kind_sql(Kind.CLIP)} AND {where} GROUP BY clip_id ORDER BY ALL",
        [target.source_uri],
    )
    return [stamp | row for row in [*sources, *clips]]


def _rewrite_survivors(
    catalog: Catalog, con: duckdb.DuckDBPyConnection, clips: list[str], scratch: Path
) -> tuple[pa.Table, int, list[str]]:
    """Rewrite the shards of the forgotten clips: the rows of the other clips in them, with their new places; how many
    shards were written, and which were damaged."""
    con.execute("CREATE TEMP TABLE going AS SELECT unnest(?::VARCHAR[]) AS clip_id", [clips])
    # Any row counts, not only the current one: an older copy of a clip may lie in a shard that is still in use.
    con.execute(
        "CREATE TEMP TABLE affected AS SELECT DISTINCT name FROM (SELECT unnest([shard, preview_shard]) AS name "
        f"FROM parts WHERE {kind_sql(Kind.CLIP)} AND clip_id IN (FROM going)) WHERE name IS NOT NULL ORDER BY name"
    )
    arrow = con.sql(
        "SELECT * FROM clips WHERE clip_id NOT IN (FROM going) "
        "AND (shard IN (FROM affected) OR preview_shard IN (FROM affected)) ORDER BY clip_id, layer"
    ).to_arrow_table()
    rows, rewritten, damaged = arrow.to_pylist(), 0, []
    # The next `dedup` decides what a group of near duplicates is without one of them.
    mates = con.sql(
        f"SELECT * REPLACE ({', '.join(f'NULL AS {name}' for name in DUPLICATES)}) FROM clips "
        "WHERE clip_id NOT IN (FROM going) AND duplicate_group IN "
        "(SELECT duplicate_group FROM clips WHERE clip_id IN (FROM going)) ORDER BY clip_id"
    )
    rows += mates.to_arrow_table().to_pylist()
    run_id = new_run_id()
    for shard in [row["name"] for row in values(con, "FROM affected")]:
        for place in (SAMPLE, PREVIEW):
            shard_rows = [row for row in rows if row[place[0]] == shard]
            if not shard_rows:
                continue
            rewritten += 1
            places = _rewrite_shard(catalog.out, shard, shard_rows, place, scratch, run_id)
            if places is None:
                damaged.append(shard)
            for row in shard_rows:
                _move_row(row, place, places)
    return pa.Table.from_pylist(rows, schema=use_catalog_types(arrow.schema)), rewritten - len(damaged), damaged


def _rewrite_shard(
    out: Folder, shard: str, rows: list[dict[str, Any]], place: tuple[str, ...], scratch: Path, run_id: str
) -> dict[str, Place] | None:
    """Write a new shard with the samples of these rows only; None where the old one is damaged: copied into a shard
    with a new checksum, damage would look sound."""
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


def _move_row(row: dict[str, Any], place: tuple[str, ...], places: dict[str, Place] | None) -> None:
    if places is None:
        clear_place(
            row, place, "forget", "the shard it was in is damaged, and had to go when another clip was forgotten"
        )
    else:
        new_place = places[row["clip_id"]]
        row |= dict(zip(place, (new_place.shard, new_place.offset, new_place.size), strict=True))


def format_summary(result: ForgetSummary) -> str:
    """The result in sentences."""
    sources, clips = len(result.sources), len(result.clips)
    names = f": {', '.join(result.sources or result.clips)}" if sources + clips else ""
    text = f"forgot {sources} sources and {clips} clips for good{names}"
    text += f"; {result.rewritten} shards were written again" if result.rewritten else ""
    if result.damaged:
        text += f"\n{len(result.damaged)} damaged shards are gone; `vdot-data retry` makes their other clips again"
    if result.report:
        text += f"\n{REPORT} is gone too, as its pictures show clips: `vdot-data report` makes it again"
    text += (
        "\npages that `report` or `view` wrote to other places, and copies, may show them too: delete those yourself"
    )
    return text
