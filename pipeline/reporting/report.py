"""One HTML file to look at a dataset: what was kept, what was not and why, and what other thresholds would do.

The page asks nobody for anything: pictures, small videos and the values that the sliders count are inside it. Up to
`ROWS` clips are all there, so that the sliders' counts are those of `select`; of more, a sample stands for them.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from annotators.base import Signal
from pipeline.catalog.catalog import Catalog, open_dataset, utc_now, values
from pipeline.catalog.dataset import manifest_columns, stored_recipe
from pipeline.catalog.ledger import made_by_sql
from pipeline.formats.schema import BASE_LAYER, PLACE
from pipeline.recipe.blueprint import Blueprint
from pipeline.recipe.rules import quote_name, quote_text
from pipeline.reporting import thresholds
from pipeline.reporting.cards import Card, card, check_writable, render
from pipeline.reporting.thresholds import Threshold
from pipeline.storage.folder import Folder
from pipeline.storage.scratch import Scratch

ROWS = 20_000
"""Clips whose values are in the page."""

# Clips that are shown of each kind; of the rejected, so many for each rule.
_KEPT, _PER_RULE, _NEAR, _FAILED = 12, 4, 12, 24
# What a page needs of a clip beside its signals: a wide row of a million clips would fill the memory.
_COLUMNS = (
    *("clip_id", "source_uri", "start_s", "end_s", *PLACE),
    *("status", "rule", "code", "stage", "detail", "tasks", "caption", "licence"),
)
# Bars of a histogram.
_BINS = 48


@dataclass(frozen=True, slots=True)
class Slider:
    """A signal with its histogram and the two numbers that a clip must lie between.

    `low` and `high`: the rule that rejects below and above, or None where there is none yet. Counts [n],
    in bars of equal width, of clips that are kept and of the others.
    """

    signal: str
    unit: str
    meaning: str
    least: float
    most: float
    low: Threshold | None
    high: Threshold | None
    kept: list[int]
    others: list[int]


@dataclass(frozen=True, slots=True)
class Report:
    """What was written, and of how much."""

    file: str
    clips: int
    rows: int
    shown: int
    size: int

    def as_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))


def report(out: str, file: Path) -> Report:
    """Write the page about a dataset into `file`. Raises `UsageError` where there is no dataset, and what reading the
    catalog raises; a sample that cannot be read is shown without pictures."""
    check_writable(file)
    with Scratch() as scratch:
        catalog = Catalog(open_dataset(out), scratch.path)
        chosen = stored_recipe(catalog)
        blueprint = Blueprint.for_ingest(chosen, manifest_columns(catalog, chosen))
        con = catalog.connect(blueprint.schema())
        columns = dict.fromkeys([*_COLUMNS, *blueprint.signals, *blueprint.rules().columns])
        con.execute(
            f"CREATE TABLE base AS SELECT {', '.join(map(quote_name, columns))}, "
            f"shard IS NOT NULL AND {made_by_sql(blueprint.lineage, any_version=True)} AS vdot_whole "
            f"FROM clips WHERE layer = {quote_text(BASE_LAYER)}"
        )
        limits = _usable(thresholds.simple(chosen.rules), blueprint)
        measured = {name: signal for name, signal in blueprint.signals.items() if signal.kind in ("float", "int")}
        sliders = [one for name, signal in measured.items() if (one := _slider(con, name, signal, limits))]
        # What a rule asks for comes first.
        sliders.sort(key=lambda one: one.low is None and one.high is None)
        data, rows = _rows(con, blueprint, sliders, limits)
        sheets = _sheets(con, catalog.out, limits)
        page = {
            "out": catalog.out.url,
            "made": utc_now(),
            "sequence": catalog.sequence,
            "counts": dict(con.execute("SELECT status, count(*) FROM base GROUP BY status").fetchall()),
            "sources": dict(con.execute("SELECT status, count(*) FROM sources GROUP BY status").fetchall()),
            "funnel": _funnel(con),
            "sliders": sliders,
            "sheets": sheets,
            "tasks": _tasks(con, list(chosen.fitness)),
            "seconds": _seconds(con),
            "lineage": _lineage(con),
            "licences": con.execute(
                "SELECT coalesce(licence, 'not stated'), count(*) FROM base WHERE status = 'kept' "
                "GROUP BY ALL ORDER BY count(*) DESC, 1 LIMIT 40"
            ).fetchall(),
            "model": data,
        }
        ((clips,),) = con.execute("SELECT count(*) FROM base").fetchall()
    size = render("report.html", file, page)
    shown = sum(len(cards) for cards in sheets.values())
    return Report(str(file), clips, rows, shown, size)


def _usable(limits: Iterable[Threshold], blueprint: Blueprint) -> list[Threshold]:
    """The thresholds on signals that are numbers, the first one of each side.

    Where a null counts as a number, a clip that is rejected before the signal is measured would be judged by it, so
    such rules must know their signal from the start.
    """
    found: dict[tuple[str, bool], Threshold] = {}
    for limit in limits:
        signal = blueprint.signals.get(limit.column)
        early = limit.null is None or limit.column in blueprint.known_columns[0]
        if signal is not None and signal.kind in ("float", "int") and early:
            found.setdefault((limit.column, limit.sign.startswith("<")), limit)
    return list(found.values())


def _slider(con: duckdb.DuckDBPyConnection, name: str, signal: Signal, limits: Sequence[Threshold]) -> Slider | None:
    column = quote_name(name)
    ((least, most),) = con.execute(f"SELECT min({column}), max({column}) FROM base").fetchall()
    if least is None:
        return None
    low, high = (
        next((one for one in limits if one.column == name and one.sign.startswith(sign)), None) for sign in "<>"
    )
    ends = [least, most, *(side.value for side in (low, high) if side)]
    least, most = float(min(ends)), float(max(ends))
    # A rule that takes what lies on its own number, as `flashes >= 2` does, must have room to be loosened.
    room = ((most - least) or 1.0) / _BINS
    least -= room if low and low.value == least else 0.0
    most += room if high and high.value == most else 0.0
    width = ((most - least) or 1.0) / _BINS
    counts = {True: [0] * _BINS, False: [0] * _BINS}
    rows = con.execute(
        f"SELECT status = 'kept', least(greatest(floor(({column} - $1) / $2), 0), {_BINS - 1})::INT AS bin, count(*) "
        f"FROM base WHERE {column} IS NOT NULL GROUP BY ALL",
        [least, width],
    ).fetchall()
    for kept, place, count in rows:
        counts[kept][place] = count
    return Slider(
        signal=name,
        unit=signal.unit,
        meaning=signal.meaning,
        least=least,
        most=most,
        low=low,
        high=high,
        kept=counts[True],
        others=counts[False],
    )


def _rows(
    con: duckdb.DuckDBPyConnection, blueprint: Blueprint, sliders: Sequence[Slider], limits: Sequence[Threshold]
) -> tuple[dict[str, Any], int]:
    """What the page's script counts with, and of how many clips: little-endian float64 per slider and clip, one after
    the other, then a byte per clip (1: stored and fully annotated, 2: a rule without a slider rejects it, 4: one of
    these is null), gzipped. Clips that failed are in neither."""
    moved = {one.rule for one in limits}
    fixed = [f"({text}\n)" for rule, text in blueprint.recipe.rules.items() if rule not in moved]
    rejected = " OR ".join(fixed) or "false"
    columns = "".join(f", {quote_name(one.signal)}::DOUBLE" for one in sliders)
    table = con.sql(
        f"SELECT vdot_whole::INT + 2 * coalesce({rejected}, false)::INT + 4 * (({rejected}) IS NULL)::INT AS vdot_flags"
        f"{columns} FROM base WHERE status IN ('kept', 'rejected', 'pending') ORDER BY md5(clip_id) LIMIT {ROWS}"
    ).to_arrow_table()
    flags = table["vdot_flags"].to_numpy().astype(np.uint8)
    parts = [table[at + 1].to_numpy().astype("<f8").tobytes() for at in range(len(sliders))]
    packed = gzip.compress(b"".join([*parts, flags.tobytes()]), mtime=0)
    ((every,),) = con.execute("SELECT count(*) FROM base WHERE status IN ('kept', 'rejected', 'pending')").fetchall()
    told = [
        {
            "signal": one.signal,
            "least": one.least,
            "most": one.most,
            "low": asdict(one.low) if one.low else None,
            "high": asdict(one.high) if one.high else None,
        }
        for one in sliders
    ]
    data = base64.b64encode(packed).decode()
    return {"sliders": told, "rows": len(flags), "every": every, "data": data}, len(flags)


def _funnel(con: duckdb.DuckDBPyConnection) -> list[tuple[str, int, int]]:
    """(what, clips that are left after it, clips that it took): cut, each rule by what it took, failures, pending."""
    ((left,),) = con.execute("SELECT count(*) FROM base").fetchall()
    steps = [("cut from the sources", left, 0)]
    taken = con.execute(
        "SELECT CASE status WHEN 'rejected' THEN rule WHEN 'failed' THEN 'failed: ' || code "
        "ELSE 'pending' END AS what, count(*) FROM base WHERE status <> 'kept' GROUP BY ALL "
        "ORDER BY any_value(status) <> 'rejected', any_value(status) <> 'failed', count(*) DESC, what"
    ).fetchall()
    for what, count in taken:
        left -= count
        steps.append((what or "a rule without a name", left, count))
    return steps


def _tasks(con: duckdb.DuckDBPyConnection, names: Sequence[str]) -> list[tuple[str, int]]:
    found = dict(
        con.execute(
            "SELECT task, count(*) FROM (SELECT unnest(tasks) AS task FROM base WHERE status = 'kept') GROUP BY task"
        ).fetchall()
    )
    return [(name, found.get(name, 0)) for name in names]


def _seconds(con: duckdb.DuckDBPyConnection) -> list[tuple[str, float]]:
    rows: list[tuple[str, float]] = con.execute(
        "SELECT step.key, sum(step.value) FROM (SELECT unnest(map_entries(timings)) AS step FROM parts "
        "WHERE timings IS NOT NULL) GROUP BY ALL HAVING sum(step.value) > 0 ORDER BY 2 DESC, 1"
    ).fetchall()
    return rows


def _lineage(con: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    return values(
        con,
        "SELECT made.name, made.version, made.weights_id, made.weights_licence, count(DISTINCT clip_id) AS clips FROM "
        "(SELECT clip_id, unnest(lineage) AS made FROM clips WHERE status IN ('kept', 'pending', 'compared')) "
        "GROUP BY ALL ORDER BY 1, 2",
    )


def _sheets(con: duckdb.DuckDBPyConnection, out: Folder, limits: Sequence[Threshold]) -> dict[str, list[Card]]:
    """The clips that are shown, by kind; which of many follows from their ids alone."""
    kept = values(con, f"SELECT * FROM base WHERE status = 'kept' ORDER BY md5(clip_id) LIMIT {_KEPT}")
    rejected = values(
        con,
        "SELECT * FROM base WHERE status = 'rejected' "
        f"QUALIFY row_number() OVER (PARTITION BY rule ORDER BY md5(clip_id)) <= {_PER_RULE} "
        "ORDER BY rule, md5(clip_id) LIMIT 96",
    )
    failed = values(
        con,
        "SELECT clip_id, source_uri, start_s, end_s, status, rule, code, stage, detail FROM base "
        "WHERE status = 'failed' UNION ALL BY NAME "
        "SELECT NULL AS clip_id, source_uri, status, rule, code, stage, detail FROM sources "
        f"WHERE status = 'failed' ORDER BY code, source_uri LIMIT {_FAILED}",
    )
    pending = values(con, f"SELECT * FROM base WHERE status = 'pending' ORDER BY md5(clip_id) LIMIT {_NEAR}")
    return {
        "kept": [card(out, row, playing=True) for row in kept],
        "near misses": [card(out, row) for row in _near(con, limits)],
        "rejected": [card(out, row) for row in rejected],
        "failed": [card(out, row) for row in failed],
        "pending": [card(out, row) for row in pending],
    }


def _near(con: duckdb.DuckDBPyConnection, limits: Sequence[Threshold]) -> list[dict[str, Any]]:
    """The clips whose verdict hangs on the least: nearest to a threshold, by the spread of that signal."""
    asks = [
        f"(SELECT clip_id, {quote_text(one.rule)} AS near_rule, {quote_name(one.column)} AS near_value, "
        f"abs({quote_name(one.column)} - {one.value!r}) "
        f"/ nullif((SELECT stddev({quote_name(one.column)}) FROM base), 0) AS near "
        f"FROM base WHERE (status = 'kept' OR rule = {quote_text(one.rule)}) AND {quote_name(one.column)} IS NOT NULL "
        f"ORDER BY near, clip_id LIMIT {_NEAR})"
        for one in limits
    ]
    if not asks:
        return []
    rows = values(
        con,
        f"SELECT base.*, near_rule, near_value FROM ({' UNION ALL '.join(asks)}) JOIN base USING (clip_id) "
        "WHERE near IS NOT NULL QUALIFY row_number() OVER (PARTITION BY clip_id ORDER BY near, near_rule) = 1 "
        "AND row_number() OVER (PARTITION BY near_rule ORDER BY near, clip_id) <= 3 "
        f"ORDER BY near, clip_id LIMIT {_NEAR}",
    )
    text = {one.rule: one for one in limits}
    for row in rows:
        limit = text[row["near_rule"]]
        row["detail"] = f"{limit.at(limit.value)}  ({limit.column} = {row['near_value']:.4g})"
    return rows
