"""The remaining work of a run: its listing compared with the catalog, in DuckDB, so that millions of rows fit.

A source's row lists its clips, and a clip is settled when it has a verdict that is still valid for this recipe.
Whatever is listed and not settled is work; resuming after a kill is the same query again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import duckdb
import pyarrow as pa

from pipeline.catalog.catalog import BATCH, Catalog, new_run_id
from pipeline.catalog.predicates import (
    FORGOTTEN_CLIPS_QUERY,
    HAS_SAMPLE,
    IS_BASE,
    IS_FAILED,
    IS_JUDGED,
    IS_KEPT,
    IS_REJECTED,
    IS_STORED_CLIP,
    layer_sql,
    made_by_sql,
    status_sql,
)
from pipeline.catalog.verdicts import judge_candidates
from pipeline.errors import UsageError
from pipeline.formats.records import ClipRecord, SourceColumns, VerdictColumns
from pipeline.formats.schema import Status
from pipeline.recipe.blueprint import Blueprint
from pipeline.recipe.rules import quote_name, quote_text
from pipeline.sources import work
from pipeline.sources.source_list import Listing

# Columns of a clip's row that a new annotation replaces; all others are carried along when a stored clip gets one.
_RENEWED = {*VerdictColumns.__annotations__, "tasks", "caption", "timings"}
_CLIP = [name for name in ClipRecord.__annotations__ if name not in _RENEWED]

# Columns of a source's row that an earlier run determined; they go into the next row of that source unchanged.
_ROW = ["status", *(name for name in SourceColumns.__annotations__ if name != "source_uri")]
_ROW += ["detector", "content_box", "shots", "windows"]


def check_foundations(catalog: Catalog, blueprint: Blueprint) -> None:
    """Raises `UsageError` if stored clips were not made by the installed versions of what a layer builds on."""
    foundations = [entry for entry in blueprint.lineage if entry["name"] != blueprint.layer]
    row = (
        catalog.connect()
        .execute(f"SELECT count(*) FROM clips WHERE {IS_STORED_CLIP} AND NOT {made_by_sql(foundations)}")
        .fetchone()
    )
    if row and row[0]:
        names = ", ".join(entry["name"] for entry in foundations)
        raise UsageError(
            f"{blueprint.layer} builds on {names}, and {row[0]} stored clips were made by other versions of them: run "
            "`vdot-data ingest` on their sources first"
        )


class Ledger:
    """Queries of a run over its listing and the catalog together."""

    def __init__(
        self,
        catalog: Catalog,
        blueprint: Blueprint,
        listing: Listing | None = None,
        retry: bool = False,
        rehash: bool = False,
    ) -> None:
        """Without a listing, the work is a layer over every stored clip. `retry`: failures are not settled.
        `rehash`: complete sources are fetched and hashed again."""
        self._catalog, self._blueprint, self._listing = catalog, blueprint, listing
        self._retry, self._rehash = retry, rehash
        self.run_id = new_run_id()
        self._read_catalog()

    def refresh(self) -> None:
        """Read the catalog as it is now. To be called between rounds and after commits of rows not accepted."""
        # Free its memory before as much is allocated again.
        self._con.close()
        self._read_catalog()

    def _read_catalog(self) -> None:
        con, layer = self._catalog.connect(self._blueprint.schema()), self._blueprint.layer
        self._con = con
        con.execute(
            f"CREATE VIEW judged AS SELECT *, {made_by_sql(self._blueprint.lineage)} AS vdot_fresh FROM clips "
            f"WHERE {layer_sql(layer)}"
        )
        # A rejected clip stays so without its bytes. Kept and pending ones are settled when every annotator has run.
        failed = f"{IS_FAILED} AND (run_id = '{self.run_id}' OR NOT {self._retry})"
        con.execute("CREATE TABLE settled (clip_id VARCHAR PRIMARY KEY)")
        con.execute(
            f"INSERT INTO settled SELECT clip_id FROM judged WHERE {IS_REJECTED} "
            f"OR ({HAS_SAMPLE} AND vdot_fresh) OR ({failed}) UNION {FORGOTTEN_CLIPS_QUERY}"
        )
        con.execute("CREATE TABLE seen (uri VARCHAR PRIMARY KEY)")
        con.execute("INSERT INTO seen SELECT source_uri FROM sources")
        con.execute("CREATE TABLE accepted (uri VARCHAR PRIMARY KEY)")
        if self._listing is not None:
            con.execute(
                f"CREATE VIEW listed AS SELECT * FROM read_parquet({quote_text(str(self._listing.path))}) "
                "QUALIFY row_number() OVER (PARTITION BY uri ORDER BY manifest = '{}', position) = 1"
            )
        con.execute(
            f"CREATE TABLE work AS {self._layer_work_sql() if self._listing is None else self._listing_work_sql()}"
        )

    def _layer_work_sql(self) -> str:
        clip = self._pack_clip_sql("")
        return (
            "SELECT row_number() OVER () AS position, NULL AS uri, NULL AS size, NULL AS stamp, '{}' AS manifest, "
            f"NULL::BLOB AS content, NULL AS known, {clip} AS clip FROM clips "
            f"WHERE {IS_STORED_CLIP} AND clip_id NOT IN (SELECT clip_id FROM settled)"
        )

    def _listing_work_sql(self) -> str:
        other_runs = f"s.run_id <> '{self.run_id}'"
        is_retried = f"({status_sql(Status.FAILED, table='s.')} AND {self._retry} AND {other_runs})"
        row = ", ".join(f"{name} := s.{name}" for name in _ROW)
        clip = self._pack_clip_sql("c.")
        return f"""
            WITH wanted AS (
                SELECT source_uri, unnest(windows) AS w FROM sources
                WHERE {status_sql(Status.CUT)} AND source_uri IN (SELECT uri FROM listed)),
            open AS (
                SELECT source_uri, w FROM wanted WHERE w.clip_id NOT IN (SELECT clip_id FROM settled)),
            stored AS (
                SELECT * FROM judged WHERE shard IS NOT NULL AND NOT {IS_REJECTED}),
            missing AS (
                SELECT source_uri, list(w ORDER BY w.start_s) AS windows FROM open
                WHERE w.clip_id NOT IN (SELECT clip_id FROM stored) GROUP BY source_uri)
            SELECT l.position, l.uri, l.size, l.stamp, l.manifest, l.content,
                CASE WHEN {status_sql(Status.CUT, table="s.")} THEN to_json(struct_pack(
                    missing := coalesce(m.windows, []), row := struct_pack({row}))) END AS known,
                NULL AS clip
            FROM listed l LEFT JOIN sources s ON s.source_uri = l.uri LEFT JOIN missing m ON m.source_uri = l.uri
                LEFT JOIN sources o ON o.source_uri = s.same_as
            WHERE s.source_uri IS NULL OR m.windows IS NOT NULL OR {is_retried}
                -- It changed, or is to be hashed again, and this run has not done so.
                OR (l.size <> s.source_size OR l.stamp <> s.source_stamp OR {self._rehash}) AND {other_runs}
                -- A duplicate of a source that no longer has clips of this content.
                OR {status_sql(Status.SAME, table="s.")} AND {other_runs}
                    AND (o.source_hash IS DISTINCT FROM s.source_hash OR {status_sql(Status.SAME, table="o.")})
            UNION ALL
            SELECT l.position, l.uri, l.size, l.stamp, l.manifest, NULL, NULL, {clip}
            FROM open o JOIN stored c ON c.clip_id = o.w.clip_id JOIN listed l ON l.uri = o.source_uri
        """

    def _pack_clip_sql(self, table: str) -> str:
        """SQL for what a stage needs of a stored clip: a `ClipWork` as JSON, without what has no columns."""
        columns = {
            "record": _CLIP,
            "manifest": [name for name in self._blueprint.manifest if name not in _CLIP],
            "signals": [name for name in self._blueprint.signals if name in self._blueprint.known_columns[0]],
        }
        parts = {
            field: ", ".join(f"{quote_name(name)} := {table}{quote_name(name)}" for name in names)
            for field, names in columns.items()
            if names
        }
        return f"to_json(struct_pack({', '.join(f'{field} := struct_pack({part})' for field, part in parts.items())}))"

    def count_work(self) -> int:
        """How many pieces of work are left."""
        return self._count("work")

    def new_sources(self) -> duckdb.DuckDBPyRelation:
        """The pieces of work that begin at a source: uri, size, stamp, manifest (JSON) and content."""
        return self._con.sql("SELECT uri, size, stamp, manifest, content FROM work WHERE clip IS NULL")

    def count_settled(self) -> int:
        """How much is settled: grows with every round that makes progress."""
        return self._count("settled") + self._count("seen")

    def chunks(self, limit: int) -> Iterator[pa.Table]:
        """The first `limit` pieces of work, in the order of the listing, each a table of one row for `read_work`."""
        # A separate cursor: another thread reads these while rows are accepted.
        rows = self._con.cursor().sql(f"SELECT * EXCLUDE position FROM work ORDER BY position LIMIT {limit}")
        for batch in rows.to_arrow_reader(1):
            yield pa.Table.from_batches([batch]).cast(work.SCHEMA)

    def contents(self) -> Iterator[list[tuple[str, str]]]:
        """(content hash, URI that holds it; "" if it was forgotten) of all known contents, in batches."""
        cursor = self._con.cursor().execute(
            "SELECT source_hash, source_uri FROM sources WHERE source_hash IS NOT NULL "
            f"AND NOT {status_sql(Status.SAME, Status.FORGOTTEN)} UNION ALL SELECT source_hash, '' FROM forgotten "
            "WHERE source_hash IS NOT NULL AND clip_id IS NULL"
        )
        while rows := cursor.fetchmany(BATCH):
            yield rows

    def accept_source(self, uri: str) -> bool:
        """Whether a settled source is new: True once, then False."""
        self._insert_new("seen", uri)
        return self._insert_new("accepted", uri)

    def accept_clip(self, uri: str, clip_id: str) -> bool | None:
        """Whether a settled clip of the source `uri` is new: True once, then False; None while the source's row is
        missing."""
        if not self._con.execute("SELECT 1 FROM seen WHERE uri = ?", [uri]).fetchall():
            return None
        return self._insert_new("settled", clip_id)

    def _insert_new(self, table: str, key: str) -> bool:
        return bool(self._con.execute(f"INSERT OR IGNORE INTO {table} VALUES (?) RETURNING 1", [key]).fetchall())

    def revise(self) -> Iterator[pa.Table]:
        """Rows, with all their columns, that the listing's manifest or the recipe's rules change.

        A manifest that changes what it says of a source (a corrected licence) changes the rows of the source and of its
        clips. Clips get the verdict and tasks of the current rules: one that passes is kept if its sample is stored,
        otherwise pending until it is annotated. All are judged before the first row is read: raises `UsageError` at
        once if a rule cannot be applied to the stored values.
        """
        con = self._con
        replacement, differs = self._create_stated()
        con.execute(
            f"CREATE TABLE candidate AS SELECT c.* {replacement}, {differs} AS vdot_restated FROM judged c "
            "LEFT JOIN stated s USING (source_uri) "
            f"WHERE (recipe_hash <> ? OR {differs}) AND {IS_JUDGED}",
            [self._blueprint.recipe.hash],
        )
        judge_candidates(con, self._blueprint.rules())
        return self._iterate_changes(replacement, differs)

    def _iterate_changes(self, replacement: str, differs: str) -> Iterator[pa.Table]:
        con = self._con
        judged = f"""
            SELECT c.* EXCLUDE (vdot_fresh, vdot_restated)
                REPLACE (v.status AS status, v.rule AS rule, v.tasks AS tasks)
            FROM candidate c JOIN (
                SELECT clip_id,
                    CASE WHEN {IS_KEPT} AND shard IS NULL THEN '{Status.PENDING}' ELSE status END AS status, rule,
                    CASE WHEN shard IS NULL OR {IS_REJECTED} THEN NULL ELSE fit.tasks END AS tasks
                FROM verdict JOIN fit USING (clip_id) JOIN (SELECT clip_id, shard FROM candidate) USING (clip_id)
            ) v USING (clip_id)
            WHERE (c.status, c.rule) IS DISTINCT FROM (v.status, v.rule) OR vdot_restated
                OR (NOT {status_sql(Status.REJECTED, table="v.")} AND c.tasks IS DISTINCT FROM v.tasks)
        """
        # Rows that no rule judges: sources, failed clips, other layers (their rows hold only the licence).
        unjudged = f"""
            SELECT c.* {replacement} FROM (
                SELECT * FROM sources UNION ALL BY NAME
                SELECT * FROM clips WHERE NOT {IS_BASE} OR {IS_FAILED}
            ) c JOIN stated s USING (source_uri)
            WHERE {differs} AND ({IS_BASE}
                OR s.licence IS NOT NULL AND s.licence IS DISTINCT FROM c.licence)
        """
        for sql, finish in ((judged, self._add_details), (unjudged, lambda rows: rows)):
            for batch in con.cursor().sql(sql).to_arrow_reader(BATCH):
                if batch.num_rows:
                    yield finish(pa.Table.from_batches([batch]))
        for table in ("candidate", "verdict", "fit", "stated"):
            con.execute(f"DROP TABLE {table}")

    def _create_stated(self) -> tuple[str, str]:
        """Create the table `stated` of the listing's values per source. Returns SQL that puts them into the columns of
        a row `c` joined to it as `s`, and SQL for whether that changes it. Values that the listing lacks stay."""
        assert self._listing is not None
        # A JSON pointer can hold any name.
        pointers = {
            quote_name(name): quote_text("/" + name.replace("~", "~0").replace("/", "~1"))
            for name in self._listing.manifest
        }
        columns = {quote_name("licence"): quote_text("/licence")} | pointers
        values = (f", json_extract_string(manifest, {pointer}) AS {name}" for name, pointer in columns.items())
        self._con.execute(f"CREATE TABLE stated AS SELECT uri AS source_uri {''.join(values)} FROM listed")
        assignments = ", ".join(f"coalesce(s.{name}, c.{name}) AS {name}" for name in pointers)
        differs = [f"s.{name} IS NOT NULL AND s.{name} IS DISTINCT FROM c.{name}" for name in pointers]
        return f"REPLACE ({assignments})" if assignments else "", f"({' OR '.join(differs) or 'false'})"

    def _add_details(self, rows: pa.Table) -> pa.Table:
        rules = self._blueprint.rules()

        def detail(row: dict[str, Any]) -> str | None:
            if row["rule"]:
                return rules.because(row["rule"], row)
            return "passes so far; not fully annotated" if row["status"] == Status.PENDING else None

        columns = {"detail": [detail(row) for row in rows.to_pylist()]}
        columns["recipe_hash"] = [self._blueprint.recipe.hash] * rows.num_rows
        # The verdict is this run's. A source's row keeps its run, which shows that this run has not read it yet.
        columns["run_id"] = [self.run_id] * rows.num_rows
        for name, column in columns.items():
            rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(column, pa.string()))
        return rows

    def count_clips(self) -> dict[str, dict[str, int]]:
        """The clips of the whole catalog: status -> rule or code ("" for neither) -> count."""
        return self._count_verdicts("judged")

    def count_sources(self) -> dict[str, dict[str, int]]:
        """As `count_clips`, for sources."""
        return self._count_verdicts("sources")

    def _count_verdicts(self, table: str) -> dict[str, dict[str, int]]:
        counts: dict[str, dict[str, int]] = {}
        rows = self._con.execute(
            f"SELECT status, coalesce(rule, code, ''), count(*) FROM {table} GROUP BY ALL ORDER BY ALL"
        )
        for status, reason, count in rows.fetchall():
            counts.setdefault(status, {})[reason] = count
        return counts

    def _count(self, table: str) -> int:
        row = self._con.execute(f"SELECT count(*) FROM {table}").fetchone()
        assert row is not None
        return int(row[0])
