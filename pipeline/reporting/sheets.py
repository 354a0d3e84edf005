"""Chooses what the report shows as pictures: a few clips of each verdict and reason, from as many sources as possible.

Every choice follows from the clip ids alone, so that the same dataset gives the same pictures.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb

from pipeline.catalog.catalog import values
from pipeline.catalog.predicates import IS_FAILED, IS_KEPT, status_sql
from pipeline.errors import ADVICE
from pipeline.formats.schema import Status
from pipeline.recipe.rules import quote_name, quote_text
from pipeline.reporting.cards import COLUMNS, Card, make_card
from pipeline.reporting.thresholds import Threshold
from pipeline.storage.folder import Folder

# The most cards of kept clips, of clips near a threshold, and of each reason; and the most reasons of a verdict.
_KEPT, _NEAR, _PER_REASON, _REASONS = 12, 12, 6, 16
# Names of our own begin with "vdot_": the tables have signals and columns of manifests too, of any name.
_COLUMNS = ", ".join(f"base.{quote_name(name)}" for name in COLUMNS)
_NO_RULE = "a rule without a name"
# The reason of a clip's verdict in SQL, by verdict.
_REASON_SQL = {
    Status.KEPT: "''",
    Status.REJECTED: f"coalesce(rule, {quote_text(_NO_RULE)})",
    Status.FAILED: "code",
    Status.PENDING: "coalesce(rule, 'not annotated yet')",
}


@dataclass(frozen=True, slots=True)
class Group:
    """Clips and sources with one verdict and reason: how many there are, and the cards of some.

    `reason`: a rule or a code, and `note`: its SQL or what to do about it.
    """

    reason: str
    note: str
    clips: int
    sources: int
    cards: list[Card]


@dataclass(frozen=True, slots=True)
class Sheet:
    """The groups of one verdict, the largest first. `reasons` counts all reasons, also those without a group; `origins`
    counts the sources that the clips were cut from."""

    clips: int
    sources: int
    origins: int
    reasons: int
    groups: list[Group]

    @property
    def cards(self) -> list[Card]:
        """All cards."""
        return [card for group in self.groups for card in group.cards]


def find_source_folder(con: duckdb.DuckDBPyConnection) -> str:
    """The folder that all sources are in, with a slash at its end; empty if there is none."""
    ((first, last),) = con.execute("SELECT min(source_uri), max(source_uri) FROM sources").fetchall()
    # What the first and the last name begin with, all names between them do.
    common = os.path.commonprefix([first or "", last or ""])  # noqa: RUF071 (a URI is not a path; cut at a slash next)
    folder = common.rpartition("/")[0] + "/"
    return "" if folder == "/" or folder.endswith("://") else folder


def make_sheets(
    con: duckdb.DuckDBPyConnection, out: Folder, rules: Mapping[str, str], source_folder: str
) -> dict[str, Sheet]:
    """Make a sheet for each verdict, from the table `base` and the view `sources`. `rules`: SQL by name."""
    con.execute(
        f"CREATE TABLE failures AS SELECT * FROM base WHERE {IS_FAILED} UNION ALL BY NAME "
        f"SELECT source_uri, status, code, stage, detail FROM sources WHERE {IS_FAILED}"
    )
    advice = {str(code): sentence for code, sentence in ADVICE.items()}
    return {
        verdict.value: _make_sheet(con, out, verdict, advice if verdict == Status.FAILED else rules, source_folder)
        for verdict in _REASON_SQL
    }


def _make_sheet(
    con: duckdb.DuckDBPyConnection, out: Folder, verdict: Status, notes: Mapping[str, str], source_folder: str
) -> Sheet:
    table = "failures" if verdict == Status.FAILED else "base"
    entries = (
        f"(SELECT clip_id, source_uri, {_REASON_SQL[verdict]} AS vdot_reason FROM {table} WHERE {status_sql(verdict)})"
    )
    counts = con.execute(
        f"SELECT vdot_reason, count(clip_id), count(*) - count(clip_id) FROM {entries} "
        "GROUP BY vdot_reason ORDER BY count(*) DESC, vdot_reason"
    ).fetchall()
    ((origins,),) = con.execute(f"SELECT count(DISTINCT source_uri) FROM {entries}").fetchall()
    groups = []
    for reason, clips, sources in counts[:_REASONS]:
        rows = values(
            con,
            f"SELECT {_COLUMNS} FROM {table} AS base JOIN (SELECT coalesce(clip_id, source_uri) AS vdot_name, "
            "md5(vdot_name) AS vdot_lot, row_number() OVER (PARTITION BY source_uri ORDER BY vdot_lot) AS vdot_turn "
            f"FROM {entries} WHERE vdot_reason = ? "
            f"ORDER BY vdot_turn, vdot_lot LIMIT {_KEPT if verdict == Status.KEPT else _PER_REASON}) AS chosen "
            "ON coalesce(base.clip_id, base.source_uri) = chosen.vdot_name ORDER BY chosen.vdot_turn, chosen.vdot_lot",
            [reason],
        )
        if verdict != Status.FAILED:
            for row in rows:
                row["detail"] = _strip_rule(row["detail"])
        cards = [make_card(out, row, playing=verdict == Status.KEPT, source_folder=source_folder) for row in rows]
        groups.append(Group(reason, " ".join(notes.get(reason, "").split()), clips, sources, cards))
    return Sheet(
        clips=sum(clips for _, clips, _ in counts),
        sources=sum(sources for *_, sources in counts),
        origins=origins,
        reasons=len(counts),
        groups=groups,
    )


def _strip_rule(detail: str | None) -> str | None:
    """A detail without the rule's SQL, which the group has: of `luma < 20  (luma = 12.5)` it leaves `luma = 12.5`."""
    _, separator, measured = (detail or "").rpartition("  (")
    return measured.removesuffix(")") if separator else detail


def make_near_misses(
    con: duckdb.DuckDBPyConnection, out: Folder, limits: Sequence[Threshold], source_folder: str
) -> list[Card]:
    """Make the cards of the clips nearest to a threshold, relative to the spread of its signal."""
    queries = [
        f"(SELECT clip_id, {quote_text(limit.rule)} AS vdot_rule, {quote_name(limit.column)} AS vdot_value, "
        f"abs({quote_name(limit.column)} - {limit.value!r}) "
        f"/ "
        f"nullif((SELECT stddev({quote_name(limit.column)}) FROM base), 0) AS vdot_near FROM base "
        f"WHERE ({IS_KEPT} OR rule = {quote_text(limit.rule)}) AND {quote_name(limit.column)} IS NOT NULL "
        f"ORDER BY vdot_near, clip_id LIMIT {_NEAR})"
        for limit in limits
    ]
    if not queries:
        return []
    rows = values(
        con,
        f"SELECT {_COLUMNS}, vdot_rule, vdot_value FROM ({' UNION ALL '.join(queries)}) JOIN base USING (clip_id) "
        "WHERE vdot_near IS NOT NULL "
        "QUALIFY row_number() OVER (PARTITION BY clip_id ORDER BY vdot_near, vdot_rule) = 1 "
        "AND row_number() OVER (PARTITION BY vdot_rule ORDER BY vdot_near, clip_id) <= 3 "
        f"ORDER BY vdot_near, clip_id LIMIT {_NEAR}",
    )
    limit_by_rule = {limit.rule: limit for limit in limits}
    for row in rows:
        limit = limit_by_rule[row["vdot_rule"]]
        row["detail"] = f"{limit.with_value(limit.value)}  ({limit.column} = {row['vdot_value']:.4g})"
    return [make_card(out, row, source_folder=source_folder) for row in rows]
