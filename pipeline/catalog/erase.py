"""The second half of `forget`, which every run does first, so that an interrupted takedown is always completed."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.catalog.catalog import Catalog, values
from pipeline.catalog.predicates import FORGOTTEN_CLIPS_QUERY, SOURCE_IS_FORGOTTEN, kind_sql
from pipeline.formats import embeddings
from pipeline.formats.schema import DUPLICATES, Kind
from pipeline.storage.folder import Folder

REPORT = "report.html"
"""The page that `report` writes into OUT. It shows pictures of clips, so it goes when anything is forgotten."""

# The first line of a report: without the part, nobody can tell what was forgotten since.
_STAMP = re.compile(rb"<!-- vdot-data report of catalog part (\d+) -->")


def stamp_report(page: bytes, sequence: int) -> bytes:
    """A report that names in its first line the newest part of the catalog that it was made from."""
    return b"<!-- vdot-data report of catalog part %d -->\n" % sequence + page


def delete_older_report(folder: Folder, sequence: int, name: str = REPORT) -> None:
    """Delete a report that was made before part `sequence` was committed, or does not say; keep a newer one."""
    try:
        stamp = _STAMP.match(folder.read(name, 0, 80))
    except (FileNotFoundError, IsADirectoryError):
        return
    if stamp is None or int(stamp[1]) < sequence:
        folder.delete(name)


def finish_forgetting(catalog: Catalog) -> None:
    """Delete the remaining shards and rows of what the catalog records as forgotten; usually there are none.

    The caller must hold the lock of OUT.
    """
    con = catalog.connect()
    ((newest,),) = con.execute("SELECT max(sequence) FROM forgotten").fetchall()
    if newest is None:
        return
    # Even where nothing else is left: a `report` that was killed while clips were forgotten may have written its page.
    delete_older_report(catalog.out, newest)
    con.execute(REMAINING_SQL)
    # The bytes first: their names are in the rows.
    for row in values(con, "FROM shard_left"):
        catalog.out.delete(row["name"])
    parts = values(con, "SELECT DISTINCT sequence FROM part_left ORDER BY sequence")
    if parts:
        ids = {row["clip_id"] for row in values(con, FORGOTTEN_CLIPS_QUERY)}
        # Before the rows, which record that there is something left to do.
        embeddings.forget(catalog.out, ids)
        forgotten_sources = {(row["sequence"], row["source_uri"]) for row in values(con, "SELECT * FROM source_left")}
        for part in parts:
            catalog.rewrite(
                part["sequence"], _remove_forgotten(catalog.read_part(part["sequence"]), ids, forgotten_sources)
            )


# Rows about forgotten clips and sources in any part: their own rows, windows of the clips in rows of other sources, and
# near duplicates that name a clip.
REMAINING_SQL = f"""
CREATE OR REPLACE TEMP TABLE clip_left AS SELECT sequence, shard, preview_shard FROM parts
  WHERE {kind_sql(Kind.CLIP)} AND clip_id IN ({FORGOTTEN_CLIPS_QUERY});
CREATE OR REPLACE TEMP TABLE source_left AS SELECT sequence, source_uri FROM parts p
  WHERE {kind_sql(Kind.SOURCE)} AND {SOURCE_IS_FORGOTTEN};
CREATE OR REPLACE TEMP TABLE window_left AS SELECT DISTINCT sequence FROM (
    SELECT sequence, unnest(windows).clip_id AS clip_id FROM parts WHERE {kind_sql(Kind.SOURCE)})
  WHERE clip_id IN ({FORGOTTEN_CLIPS_QUERY});
CREATE OR REPLACE TEMP TABLE duplicate_left AS SELECT DISTINCT sequence FROM parts WHERE {kind_sql(Kind.CLIP)}
  AND (duplicate_of IN ({FORGOTTEN_CLIPS_QUERY}) OR duplicate_group IN ({FORGOTTEN_CLIPS_QUERY}));
CREATE OR REPLACE TEMP VIEW part_left AS SELECT sequence FROM clip_left UNION ALL SELECT sequence FROM source_left
  UNION ALL SELECT sequence FROM window_left UNION ALL SELECT sequence FROM duplicate_left;
CREATE OR REPLACE TEMP TABLE shard_left AS
  (SELECT shard AS name FROM clip_left UNION SELECT preview_shard FROM clip_left)
  EXCEPT (SELECT shard FROM clips UNION SELECT preview_shard FROM clips UNION SELECT NULL);
"""


def _remove_forgotten(part: pa.Table, ids: set[str], forgotten_sources: set[tuple[int, str]]) -> pa.Table:
    """A part without the forgotten rows. Other rows are unchanged, except that windows of forgotten clips are removed,
    and near duplicates that name a forgotten clip are unknown until the next `dedup`."""
    columns = [name for name in ("duplicate_of", "duplicate_group") if name in part.column_names]
    is_kept, windows, names_forgotten = [], [], []
    for row in part.select(["kind", "sequence", "source_uri", "clip_id", "windows", *columns]).to_pylist():
        is_forgotten_clip = row["kind"] == Kind.CLIP and row["clip_id"] in ids
        is_forgotten_source = row["kind"] == Kind.SOURCE and (row["sequence"], row["source_uri"]) in forgotten_sources
        is_kept.append(not is_forgotten_clip and not is_forgotten_source)
        listed = row["windows"]
        windows.append(None if listed is None else [window for window in listed if window["clip_id"] not in ids])
        names_forgotten.append(any(row[name] in ids for name in columns))
    changed = {"windows": pa.array(windows, part.schema.field("windows").type)}
    if any(names_forgotten):
        changed |= {name: pc.if_else(pa.array(names_forgotten), None, part[name]) for name in DUPLICATES}
    for name, column in changed.items():
        index = part.schema.get_field_index(name)
        part = part.set_column(index, part.schema.field(index), column)
    return part.filter(pa.array(is_kept, pa.bool_()))
