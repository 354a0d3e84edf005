"""Checks every row of a dataset against its bytes, and lists what is wrong."""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import groupby

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.catalog.catalog import PARTS, Catalog, open_dataset, values
from pipeline.catalog.cleanup import FOLDERS, find_unreferenced
from pipeline.catalog.erase import REMAINING_SQL, REPORT
from pipeline.catalog.predicates import FORGOTTEN_CLIPS_QUERY, IS_BASE, IS_KEPT, kind_sql, status_sql
from pipeline.errors import RunError
from pipeline.formats import embeddings
from pipeline.formats.schema import FORMAT_VERSION, Kind, Status
from pipeline.storage.folder import Folder
from pipeline.storage.scratch import Scratch
from pipeline.upkeep.shard_check import Damage, Piece, Problem, Stored, Subject, inspect_shard

# Why no command repairs a part.
_NO_PART = "nothing else says what it held"
_REPAIR = "`vdot-data verify --mark-failed` and then `vdot-data retry` make damaged samples again, from their sources"
# Problems kept as lines; more are only counted. A dataset that lost its disk has millions of them.
MOST = 1000


@dataclass(slots=True)
class VerifyReport:
    """The result of `verify`: the first `MOST` problems and their total number, all damage that can be repaired, notes
    that are not problems, and counts of what was checked (parts, clips, layers, ...)."""

    out: str
    problems: list[Problem] = field(default_factory=list)
    count: int = 0
    damage: set[Damage] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=dict)

    def add(self, *problems: Problem) -> None:
        """Count problems, and keep the first ones; all damage is kept."""
        self.count += len(problems)
        self.problems += problems[: MOST - len(self.problems)]
        self.damage |= {problem.damage for problem in problems if problem.damage}


def verify(out: str, workers: int | None = None) -> VerifyReport:
    """Check the catalog and every stored byte of OUT; nothing is changed. `workers`: processes, else one per core.

    Raises `UsageError` where there is no dataset, `RunError` where the check itself cannot continue.
    """
    folder, report = open_dataset(out), VerifyReport(out)
    if not _check_parts(folder, report):
        report.notes.append("the rest of the checks need a catalog that can be read, and were left out")
        return report
    with Scratch() as scratch:
        catalog = Catalog(folder, scratch.path)
        con = catalog.connect()
        for check in _CHECKS:
            for row in values(con, check.sql):
                report.add(Problem(check.kind, row["name"], check.sentence.format(**row)))
        _add_notes(con, catalog, report)
        _check_embeddings(con, folder, report)
        _check_report(con, folder, report)
        stored = {f"{name}/{entry.name}": entry.size for name in FOLDERS for entry in folder.list_files(name)}
        _check_shards(folder, con, stored, workers or os.cpu_count() or 1, report)
    return report


def _check_parts(folder: Folder, report: VerifyReport) -> bool:
    """Whether every part of the catalog can be read."""
    names = [entry.name for entry in folder.list_files(PARTS) if entry.name.endswith(".parquet")]
    expected, sound = 1, True
    for name in names:
        number = name.removesuffix(".parquet")
        if not number.isdigit():
            report.add(
                Problem(Subject.PART, name, "is not the name of a part; the catalog has a file that no run wrote")
            )
            return False
        if int(number) != expected:
            report.add(
                Problem(Subject.PART, name, f"part {expected} should come before it, and is missing; {_NO_PART}")
            )
        expected = int(number) + 1
        try:
            table = pq.read_table(pa.BufferReader(folder.read(f"{PARTS}/{name}")))
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            report.add(
                Problem(Subject.PART, name, f"cannot be read ({reason}); bring it back from a copy of OUT: {_NO_PART}")
            )
            sound = False
            continue
        for column, value in (("format_version", FORMAT_VERSION), ("sequence", int(number))):
            if column not in table.column_names:
                report.add(Problem(Subject.PART, name, f"has no column {column}"))
                sound = False
            elif not pc.all(pc.equal(table[column], value), min_count=0, skip_nulls=False).as_py():
                report.add(Problem(Subject.PART, name, f"has rows whose {column} is not {value}"))
    report.checked["parts"] = len(names)
    return sound


@dataclass(frozen=True, slots=True)
class _Check:
    """A query whose every row is a problem; `sentence` names its columns."""

    kind: Subject
    sql: str
    sentence: str


def _overlap_query(place: str) -> str:
    order = f"(PARTITION BY {place}shard ORDER BY c.{place}offset, clip_id, layer"
    return (
        f"SELECT clip_id AS name, {place}shard AS shard, other FROM (SELECT clip_id, {place}shard, "
        f"c.{place}offset AS first, lag(clip_id) OVER {order}) AS other, "
        f"max(c.{place}offset + {place}bytes) OVER {order} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) "
        f"AS reached FROM clips c WHERE {place}shard IS NOT NULL) "
        "WHERE reached > first ORDER BY ALL"
    )


_CHECKS = (
    _Check(
        Subject.CLIP,
        f"SELECT clip_id AS name, layer, sequence, count(*) AS n FROM parts WHERE {kind_sql(Kind.CLIP)} "
        "GROUP BY clip_id, layer, sequence HAVING n > 1 ORDER BY ALL",
        "part {sequence} has {n} rows of its layer {layer}; it must have one",
    ),
    _Check(
        Subject.SOURCE,
        f"SELECT source_uri AS name, sequence, count(*) AS n FROM parts WHERE {kind_sql(Kind.SOURCE)} "
        "GROUP BY source_uri, sequence HAVING n > 1 ORDER BY ALL",
        "part {sequence} has {n} rows of this source; it must have one",
    ),
    _Check(
        Subject.CLIP,
        "SELECT clip_id AS name, c.source_uri AS uri, min(c.sequence) AS sequence FROM parts c LEFT JOIN "
        f"(SELECT source_uri, min(sequence) AS vdot_since FROM parts WHERE {kind_sql(Kind.SOURCE)} "
        f"GROUP BY source_uri) s ON s.source_uri = c.source_uri WHERE {kind_sql(Kind.CLIP)} "
        "AND clip_id IN (SELECT clip_id FROM clips) AND (vdot_since IS NULL OR vdot_since > c.sequence) "
        "GROUP BY clip_id, c.source_uri ORDER BY ALL",
        "part {sequence} names it before any row of its source {uri}",
    ),
    _Check(
        Subject.CLIP,
        f"SELECT clip_id AS name, layer FROM clips WHERE {IS_KEPT} AND shard IS NULL ORDER BY ALL",
        "its layer {layer} is kept, but the catalog names no shard for it",
    ),
    _Check(Subject.CLIP, _overlap_query(""), "its bytes in {shard} are also those of clip {other}"),
    _Check(Subject.CLIP, _overlap_query("preview_"), "its preview in {shard} is also that of clip {other}"),
)


_COUNTS = {
    "clips": f"clips WHERE {IS_BASE}",
    "layers": f"clips WHERE NOT {IS_BASE}",
    "sources": "sources",
    "forgotten": "forgotten",
}


def _add_notes(con: duckdb.DuckDBPyConnection, catalog: Catalog, report: VerifyReport) -> None:
    """Add notes on what is worth knowing although nothing is wrong."""
    incomplete = values(
        con,
        "SELECT count(DISTINCT source_uri) AS sources, count(*) AS clips FROM (SELECT source_uri, unnest(windows) AS w "
        f"FROM sources WHERE {status_sql(Status.CUT)}) WHERE w.clip_id NOT IN "
        f"(SELECT clip_id FROM parts WHERE {kind_sql(Kind.CLIP)} UNION ALL {FORGOTTEN_CLIPS_QUERY})",
    )[0]
    if incomplete["sources"]:
        report.notes.append(
            f"{incomplete['sources']} sources are incomplete ({incomplete['clips']} clips have no verdict yet); "
            "the next ingest continues with them"
        )
    leftovers = len(find_unreferenced(catalog))
    # Where a part is missing, the files that it named only seem to be left over.
    if leftovers and len(catalog.list_sequences()) == catalog.sequence:
        report.notes.append(f"{leftovers} unfinished or superseded files; the next run removes them")
    if _was_interrupted(con):
        report.notes.append("a forget was interrupted; the next forget, ingest or dedup finishes it")
    for name, view in _COUNTS.items():
        report.checked[name] = values(con, f"SELECT count(*) AS n FROM {view}")[0]["n"]


def _was_interrupted(con: duckdb.DuckDBPyConnection) -> bool:
    """Whether rows of forgotten clips remain: then bytes may remain as well."""
    con.execute(REMAINING_SQL)
    return bool(values(con, "SELECT 1 FROM part_left LIMIT 1"))


def _check_embeddings(con: duckdb.DuckDBPyConnection, folder: Folder, report: VerifyReport) -> None:
    """Check the parts of the table of embeddings: all of it can be made again, and none of it may outlive its clip."""
    names = embeddings.list_parts(folder)
    if names:
        report.checked["parts of embeddings"] = len(names)
        forgotten = [] if _was_interrupted(con) else values(con, FORGOTTEN_CLIPS_QUERY)
        for name, sentence in embeddings.find_problems(folder, (row["clip_id"] for row in forgotten)):
            report.add(Problem(Subject.EMBEDDINGS, name, sentence))


def _check_report(con: duckdb.DuckDBPyConnection, folder: Folder, report: VerifyReport) -> None:
    """Check that the report in OUT shows no forgotten clip, as one does that was put back from a copy."""
    forgotten = {row["clip_id"] for row in values(con, FORGOTTEN_CLIPS_QUERY)}
    if not forgotten or not folder.exists(REPORT) or _was_interrupted(con):
        return
    ids = re.findall(r"[0-9a-f]{32}", folder.read(REPORT).decode(errors="replace"))
    for clip_id in sorted(forgotten.intersection(ids)):
        report.add(
            Problem(Subject.REPORT, REPORT, f"shows the forgotten clip {clip_id}; `vdot-data report` makes a new one")
        )


def _expected_shards(con: duckdb.DuckDBPyConnection) -> Iterator[tuple[str, list[Stored]]]:
    """Every shard that a current row names, with the rows it should hold; one shard's rows in memory at a time."""
    cursor = con.execute(
        f"SELECT shard, clip_id, layer, '{Piece.SAMPLE}', c.offset, bytes, frames, height, width FROM clips c "
        f"WHERE shard IS NOT NULL UNION ALL SELECT preview_shard, clip_id, layer, '{Piece.PREVIEW}', preview_offset, "
        "preview_bytes, NULL, NULL, NULL FROM clips WHERE preview_shard IS NOT NULL ORDER BY ALL"
    )
    rows = iter(cursor.fetchone, None)
    for shard, group in groupby(rows, key=lambda row: row[0]):
        yield shard, [Stored(*row[1:]) for row in group]


def _check_shards(
    folder: Folder, con: duckdb.DuckDBPyConnection, stored: dict[str, int], workers: int, report: VerifyReport
) -> None:
    """Inspect every shard, `workers` at once, each in a separate process."""
    report.checked |= {"shards": 0, "bytes": 0}

    def stored_shards() -> Iterator[tuple[str, list[Stored]]]:
        for shard, rows in _expected_shards(con):
            if shard in stored:
                report.checked["shards"] += 1
                report.checked["bytes"] += stored[shard]
                yield shard, rows
            else:
                sentence = f"does not exist, and {len(rows)} rows of the catalog name it"
                report.add(Problem(Subject.SHARD, shard, sentence, Damage(shard)))

    if workers == 1:
        for shard, rows in stored_shards():
            report.add(*inspect_shard(folder, shard, rows))
        return
    # Not forked: DuckDB and the object stores' clients have threads.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        pending: set[Future[list[Problem]]] = set()
        try:
            for shard, rows in stored_shards():
                pending.add(pool.submit(inspect_shard, folder, shard, rows))
                if len(pending) > 2 * workers:
                    finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for future in finished:
                        report.add(*future.result())
            for future in wait(pending).done:
                report.add(*future.result())
        except BrokenProcessPool as error:
            raise RunError("a process that checked shards died (often memory): try fewer with --workers") from error
    report.problems.sort(key=lambda problem: (problem.kind, problem.name))


def problem_lines(report: VerifyReport) -> Iterator[str]:
    """The problems, one line each, and a last line that counts those not listed."""
    for problem in report.problems:
        yield problem.text
    if report.count > len(report.problems):
        yield f"... and {report.count - len(report.problems)} more"


def format_summary(report: VerifyReport) -> str:
    """Sentences that say what was checked, how much is wrong, and the notes."""
    checked = ", ".join(f"{count} {name}" for name, count in report.checked.items())
    verdict = {0: "no problem", 1: "1 problem"}.get(report.count, f"{report.count} problems")
    notes = [*report.notes, *([_REPAIR] if report.damage else [])]
    return "\n".join([f"{report.out}: {verdict}; checked {checked or 'the catalog'}", *notes])


__all__ = ["Problem", "VerifyReport", "format_summary", "problem_lines", "verify"]
