"""What is left to do: the listing held against the catalog, in DuckDB, so that millions of rows fit.

A source's row lists its clips, and a clip is settled when it has a verdict that this recipe still stands by. Whatever
is listed and not settled is work; resuming after a kill is nothing but asking again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import duckdb
import pyarrow as pa

from pipeline.catalog.catalog import BATCH, Catalog, new_run_id
from pipeline.errors import UsageError
from pipeline.formats.schema import BASE_LAYER, PLACE
from pipeline.recipe.blueprint import Blueprint
from pipeline.recipe.rules import first_line, named, quoted
from pipeline.sources.source_list import SCHEMA, Listing

# What a clip's row says of its source, and of the clip; carried along when a stored clip is annotated anew.
_SOURCE = ["source_uri", "source_hash", "source_width", "source_height", "source_fps"]
_SOURCE += ["source_duration_s", "source_codec"]
_CLIP = ["clip_id", "start_s", "end_s", "width", "height", "fps", "frames", "licence", "lineage"]

# What a source's row says that an earlier run found out; it goes into the next row of that source as it is.
_ROW = ["status", *_SOURCE[1:], "source_frames", "source_frames_unused", "source_frames_missing"]
_ROW += ["source_size", "source_stamp", "detector", "content_box", "shots", "windows"]

# Work rows: a source (uri .. known), or a stored clip (clip). JSON where a stage needs a few values only.
_WORK_SCHEMA = pa.schema(
    [*[field for field in SCHEMA if field.name != "position"], ("known", pa.string()), ("clip", pa.string())]
)


def made(lineage: Iterable[dict[str, Any]], any_version: bool = False) -> str:
    """SQL that is true for a row of the catalog which all of these made, in these versions or in any."""
    if any_version:
        entries, told = ", ".join(quoted(one["name"]) for one in lineage), "list_transform(lineage, lambda e: e.name)"
    else:
        entries = ", ".join(quoted(f"{one['name']} {one['version']} {one['weights_sha256']}") for one in lineage)
        told = (
            "list_transform(lineage, lambda e: concat_ws(' ', e.name, e.version, coalesce(e.weights_sha256, 'None')))"
        )
    return f"coalesce(list_has_all({told}, [{entries}]::VARCHAR[]), false)"


def check_foundations(catalog: Catalog, blueprint: Blueprint) -> None:
    """Raises `UsageError` when stored clips were not made by the versions installed here of what a layer builds on."""
    beneath = [entry for entry in blueprint.lineage if entry["name"] != blueprint.layer]
    row = (
        catalog.connect()
        .execute(
            f"SELECT count(*) FROM clips WHERE layer = ? AND shard IS NOT NULL "
            f"AND status IN ('kept', 'pending') AND NOT {made(beneath)}",
            [BASE_LAYER],
        )
        .fetchone()
    )
    if row and row[0]:
        names = ", ".join(entry["name"] for entry in beneath)
        raise UsageError(
            f"{blueprint.layer} builds on {names}, and {row[0]} stored clips were made by other versions of them: run "
            "`vdot-data ingest` on their sources first"
        )


class Ledger:
    """The questions that a run asks of its listing and the catalog together."""

    def __init__(
        self,
        catalog: Catalog,
        blueprint: Blueprint,
        listing: Listing | None = None,
        retry: bool = False,
        rehash: bool = False,
    ) -> None:
        """Without a listing, the work is a layer over every stored clip. `retry`: failures count as not settled.
        `rehash`: complete sources are fetched and hashed again."""
        self._catalog, self._blueprint, self._listing = catalog, blueprint, listing
        self._retry, self._rehash = retry, rehash
        self.run_id = new_run_id()
        self._look()

    def refresh(self) -> None:
        """Look at the catalog as it is now. To be called between rounds and after commits that are not `accept`ed."""
        # What it holds, before as much again is asked for.
        self._con.close()
        self._look()

    def _look(self) -> None:
        con, layer = self._catalog.connect(self._blueprint.schema()), self._blueprint.layer
        self._con = con
        con.execute(
            f"CREATE VIEW judged AS SELECT *, {made(self._blueprint.lineage)} AS vdot_fresh FROM clips "
            f"WHERE layer = {quoted(layer)}"
        )
        # A rejected clip stays so without its bytes. Kept and pending ones are settled when every annotator has run.
        failed = f"status = 'failed' AND (run_id = '{self.run_id}' OR NOT {self._retry})"
        con.execute("CREATE TABLE settled (clip_id VARCHAR PRIMARY KEY)")
        con.execute(
            "INSERT INTO settled SELECT clip_id FROM judged WHERE status = 'rejected' "
            f"OR (status IN ('kept', 'pending') AND shard IS NOT NULL AND vdot_fresh) OR ({failed}) "
            "UNION SELECT clip_id FROM forgotten WHERE clip_id IS NOT NULL"
        )
        con.execute("CREATE TABLE seen (uri VARCHAR PRIMARY KEY)")
        con.execute("INSERT INTO seen SELECT source_uri FROM sources")
        con.execute("CREATE TABLE accepted (uri VARCHAR PRIMARY KEY)")
        if self._listing is not None:
            con.execute(
                f"CREATE VIEW listed AS SELECT * FROM read_parquet({quoted(str(self._listing.path))}) "
                "QUALIFY row_number() OVER (PARTITION BY uri ORDER BY manifest = '{}', position) = 1"
            )
        con.execute(
            f"CREATE TABLE work AS {self._work_of_layer() if self._listing is None else self._work_of_listing()}"
        )

    def _work_of_layer(self) -> str:
        clip = self._packed("")
        return (
            "SELECT row_number() OVER () AS position, NULL AS uri, NULL AS size, NULL AS stamp, '{}' AS manifest, "
            f"NULL::BLOB AS content, NULL AS known, {clip} AS clip FROM clips "
            f"WHERE layer = '{BASE_LAYER}' AND status IN ('kept', 'pending') AND shard IS NOT NULL "
            "AND clip_id NOT IN (SELECT clip_id FROM settled)"
        )

    def _work_of_listing(self) -> str:
        others = f"s.run_id <> '{self.run_id}'"
        again = f"(s.status = 'failed' AND {self._retry} AND {others})"
        row = ", ".join(f"{name} := s.{name}" for name in _ROW)
        clip = self._packed("c.")
        return f"""
            WITH wanted AS (
                SELECT source_uri, unnest(windows) AS w FROM sources
                WHERE status = 'cut' AND source_uri IN (SELECT uri FROM listed)),
            open AS (
                SELECT source_uri, w FROM wanted WHERE w.clip_id NOT IN (SELECT clip_id FROM settled)),
            stored AS (
                SELECT * FROM judged WHERE shard IS NOT NULL AND status <> 'rejected'),
            missing AS (
                SELECT source_uri, list(w ORDER BY w.start_s) AS windows FROM open
                WHERE w.clip_id NOT IN (SELECT clip_id FROM stored) GROUP BY source_uri)
            SELECT l.position, l.uri, l.size, l.stamp, l.manifest, l.content,
                CASE WHEN s.status = 'cut' THEN to_json(struct_pack(
                    missing := coalesce(m.windows, []), row := struct_pack({row}))) END AS known,
                NULL AS clip
            FROM listed l LEFT JOIN sources s ON s.source_uri = l.uri LEFT JOIN missing m ON m.source_uri = l.uri
                LEFT JOIN sources o ON o.source_uri = s.same_as
            WHERE s.source_uri IS NULL OR m.windows IS NOT NULL OR {again}
                -- It changed, or is to be looked at again, and this run has not done so.
                OR (l.size <> s.source_size OR l.stamp <> s.source_stamp OR {self._rehash}) AND {others}
                -- A twin whose other half has no clips of this content.
                OR s.status = 'same' AND {others}
                    AND (o.source_hash IS DISTINCT FROM s.source_hash OR o.status = 'same')
            UNION ALL
            SELECT l.position, l.uri, l.size, l.stamp, l.manifest, NULL, NULL, {clip}
            FROM open o JOIN stored c ON c.clip_id = o.w.clip_id JOIN listed l ON l.uri = o.source_uri
        """

    def _packed(self, table: str) -> str:
        """SQL for what a stage must know of a stored clip, as JSON."""
        cheap = [name for name in self._blueprint.signals if name in self._blueprint.known[0]]
        names = dict.fromkeys([*_SOURCE, *_CLIP, *PLACE, *self._blueprint.manifest, *cheap])
        pairs = (f"{named(name)} := {table}{named(name)}" for name in names)
        return f"to_json(struct_pack({', '.join(pairs)}))"

    def work(self) -> int:
        """How many pieces of work are left."""
        return self._count("work")

    def new_sources(self) -> duckdb.DuckDBPyRelation:
        """The pieces of work that begin at a source: uri, size, stamp, manifest (JSON) and content."""
        return self._con.sql("SELECT uri, size, stamp, manifest, content FROM work WHERE clip IS NULL")

    def settled(self) -> int:
        """How much is settled: grows with every round that gets anywhere."""
        return self._count("settled") + self._count("seen")

    def chunks(self, most: int) -> Iterator[pa.Table]:
        """The first `most` pieces of work, in the order of the listing, each an Arrow table of one row."""
        # A cursor of its own: another thread reads these while `accept` goes on.
        rows = self._con.cursor().sql(f"SELECT * EXCLUDE position FROM work ORDER BY position LIMIT {most}")
        for batch in rows.to_arrow_reader(1):
            yield pa.Table.from_batches([batch]).cast(_WORK_SCHEMA)

    def contents(self) -> Iterator[list[tuple[str, str]]]:
        """(content hash, URI that holds it; "" if it was forgotten) of every known content, in batches."""
        cursor = self._con.cursor().execute(
            "SELECT source_hash, source_uri FROM sources WHERE source_hash IS NOT NULL "
            "AND status NOT IN ('same', 'forgotten') UNION ALL SELECT source_hash, '' FROM forgotten "
            "WHERE source_hash IS NOT NULL AND clip_id IS NULL"
        )
        while rows := cursor.fetchmany(BATCH):
            yield rows

    def accept(self, record: dict[str, Any]) -> bool | None:
        """Whether a settled record is new: True once, False ever after, None while its source's row is not here yet."""
        uri, clip = record.get("source_uri"), record.get("clip_id")
        if record["kind"] == "source":
            self._new("seen", uri)
            return self._new("accepted", uri)
        if not self._con.execute("SELECT 1 FROM seen WHERE uri = ?", [uri]).fetchall():
            return None
        return self._new("settled", clip)

    def _new(self, table: str, key: str | None) -> bool:
        return bool(self._con.execute(f"INSERT OR IGNORE INTO {table} VALUES (?) RETURNING 1", [key]).fetchall())

    def revised(self) -> Iterator[pa.Table]:
        """Rows, with every column they had, that the listing's manifest or the recipe's rules change.

        A manifest that says something else of a source than before (a corrected licence) changes the rows of the source
        and of its clips. Clips get the verdict and tasks that the rules now give: one that is let through is kept if
        its sample is stored, else pending until it is annotated. All are judged before the first row is asked for:
        raises `UsageError` at once where a rule cannot be applied to the values that are there.
        """
        rules, con = self._blueprint.rules(), self._con
        said, differs = self._restated()
        con.execute(
            f"CREATE TABLE candidate AS SELECT c.* {said}, {differs} AS vdot_restated FROM judged c "
            "LEFT JOIN stated s USING (source_uri) "
            f"WHERE (recipe_hash <> ? OR {differs}) AND status IN ('kept', 'rejected', 'pending')",
            [self._blueprint.recipe.hash],
        )
        try:
            con.execute(f"CREATE TABLE verdict AS {rules.judge_table('candidate')}")
            con.execute(f"CREATE TABLE fit AS SELECT clip_id, {rules.tasks_sql()} AS tasks FROM candidate")
        except duckdb.Error as error:
            what = first_line(error)
            raise UsageError(
                f"a rule or task cannot be applied to the clips that are there (TRY_CAST?): {what}"
            ) from error
        return self._changes(said, differs)

    def _changes(self, said: str, differs: str) -> Iterator[pa.Table]:
        con = self._con
        judged = """
            SELECT c.* EXCLUDE (vdot_fresh, vdot_restated)
                REPLACE (v.status AS status, v.rule AS rule, v.tasks AS tasks)
            FROM candidate c JOIN (
                SELECT clip_id, CASE WHEN status = 'kept' AND shard IS NULL THEN 'pending' ELSE status END AS status,
                    rule, CASE WHEN shard IS NULL OR status = 'rejected' THEN NULL ELSE fit.tasks END AS tasks
                FROM verdict JOIN fit USING (clip_id) JOIN (SELECT clip_id, shard FROM candidate) USING (clip_id)
            ) v USING (clip_id)
            WHERE (c.status, c.rule) IS DISTINCT FROM (v.status, v.rule) OR vdot_restated
                OR (v.status <> 'rejected' AND c.tasks IS DISTINCT FROM v.tasks)
        """
        # Rows that no rule judges: sources, clips that failed, other layers (their rows hold the licence alone).
        others = f"""
            SELECT c.* {said} FROM (
                SELECT * FROM sources UNION ALL BY NAME
                SELECT * FROM clips WHERE layer <> {quoted(BASE_LAYER)} OR status = 'failed'
            ) c JOIN stated s USING (source_uri)
            WHERE {differs} AND (layer = {quoted(BASE_LAYER)}
                OR s.licence IS NOT NULL AND s.licence IS DISTINCT FROM c.licence)
        """
        for sql, finish in ((judged, self._explained), (others, lambda rows: rows)):
            for batch in con.cursor().sql(sql).to_arrow_reader(BATCH):
                if batch.num_rows:
                    yield finish(pa.Table.from_batches([batch]))
        for table in ("candidate", "verdict", "fit", "stated"):
            con.execute(f"DROP TABLE {table}")

    def _restated(self) -> tuple[str, str]:
        """Make the table `stated` of what the listing says of its sources; SQL that puts it into the columns of a row
        `c` joined to it as `s`, and whether that changes the row. What a listing does not say stays."""
        assert self._listing is not None
        # A JSON pointer takes any name.
        pointers = {
            named(name): quoted("/" + name.replace("~", "~0").replace("/", "~1")) for name in self._listing.manifest
        }
        columns = {named("licence"): quoted("/licence")} | pointers
        values = (f", json_extract_string(manifest, {pointer}) AS {name}" for name, pointer in columns.items())
        self._con.execute(f"CREATE TABLE stated AS SELECT uri AS source_uri {''.join(values)} FROM listed")
        said = ", ".join(f"coalesce(s.{name}, c.{name}) AS {name}" for name in pointers)
        differs = [f"s.{name} IS NOT NULL AND s.{name} IS DISTINCT FROM c.{name}" for name in pointers]
        return f"REPLACE ({said})" if said else "", f"({' OR '.join(differs) or 'false'})"

    def _explained(self, rows: pa.Table) -> pa.Table:
        rules = self._blueprint.rules()

        def detail(row: dict[str, Any]) -> str | None:
            if row["rule"]:
                return rules.because(row["rule"], row)
            return "passes so far; not fully annotated" if row["status"] == "pending" else None

        columns = {"detail": [detail(row) for row in rows.to_pylist()]}
        columns["recipe_hash"] = [self._blueprint.recipe.hash] * rows.num_rows
        # Their verdict is this run's. A source's row keeps its run, by which this one sees that it has not looked yet.
        columns["run_id"] = [self.run_id] * rows.num_rows
        for name, column in columns.items():
            rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(column, pa.string()))
        return rows

    def counts(self) -> dict[tuple[str, str], int]:
        """Clips by (status, rule or code), and sources by ("source " + status, rule or code), of the whole catalog."""
        rows = self._con.execute(
            "SELECT status, coalesce(rule, code, ''), count(*) FROM judged GROUP BY ALL UNION ALL "
            "SELECT 'source ' || status, coalesce(rule, code, ''), count(*) FROM sources GROUP BY ALL"
        ).fetchall()
        return {(status, reason): count for status, reason, count in rows}

    def _count(self, table: str) -> int:
        row = self._con.execute(f"SELECT count(*) FROM {table}").fetchone()
        assert row is not None
        return int(row[0])
