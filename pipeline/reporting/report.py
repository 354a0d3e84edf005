"""Writes one HTML report of a dataset: what was kept, what was not and why, and what other thresholds would do.

The page makes no requests: pictures, small videos and the values that the sliders count are inside it. Up to `ROWS`
clips are all included, so that the sliders' counts are those of `select`; of more, a random sample is.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from annotators.base import Signal
from pipeline.catalog.catalog import Catalog, open_dataset, utc_now, values
from pipeline.catalog.dataset import manifest_columns, stored_recipe
from pipeline.catalog.predicates import made_by_sql
from pipeline.formats.schema import BASE_LAYER, PLACE
from pipeline.recipe.blueprint import Blueprint
from pipeline.recipe.rules import quote_name, quote_text
from pipeline.reporting import thresholds
from pipeline.reporting.cards import Card, check_writable, make_card, render
from pipeline.reporting.thresholds import Threshold
from pipeline.storage.folder import Folder
from pipeline.storage.scratch import Scratch

ROWS = 20_000
"""The most clips whose values are in the page."""

# Clips that are shown of each kind; of the rejected, for each rule.
_KEPT, _PER_RULE, _NEAR, _FAILED = 12, 4, 12, 24
# Columns that a page needs besides the signals: all columns of a million clips would fill the memory.
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
    minimum: float
    maximum: float
    low: Threshold | None
    high: Threshold | None
    kept_counts: list[int]
    other_counts: list[int]


@dataclass(frozen=True, slots=True)
class Report:
    """What was written, and from how many clips."""

    file: str
    clips: int
    rows: int
    shown: int
    size: int


def report(out: str, file: Path) -> Report:
    """Write the page about a dataset into `file`. Raises `UsageError` where there is no dataset, and the errors of
    reading the catalog; a sample that cannot be read is shown without pictures."""
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
        limits = _pick_thresholds(thresholds.find_thresholds(chosen.rules), blueprint)
        measured = {name: signal for name, signal in blueprint.signals.items() if signal.kind in ("float", "int")}
        sliders = [slider for name, signal in measured.items() if (slider := _make_slider(con, name, signal, limits))]
        # Signals of rules come first.
        sliders.sort(key=lambda slider: slider.low is None and slider.high is None)
        data, rows = _pack_rows(con, blueprint, sliders, limits)
        sheets = _make_sheets(con, catalog.out, limits)
        page = {
            "out": catalog.out.url,
            "made": utc_now(),
            "sequence": catalog.sequence,
            "counts": dict(con.execute("SELECT status, count(*) FROM base GROUP BY status").fetchall()),
            "sources": dict(con.execute("SELECT status, count(*) FROM sources GROUP BY status").fetchall()),
            "funnel": _build_funnel(con),
            "sliders": sliders,
            "sheets": sheets,
            "tasks": _count_tasks(con, list(chosen.fitness)),
            "seconds": _sum_seconds(con),
            "lineage": _read_lineage(con),
            "licences": con.execute(
                "SELECT coalesce(licence, 'not stated'), count(*) FROM base WHERE status = 'kept' "
                "GROUP BY ALL ORDER BY count(*) DESC, 1 LIMIT 40"
            ).fetchall(),
            "model": data,
        }
        ((clips,),) = con.execute("SELECT count(*) FROM base").fetchall()
    size = render("report.html", file, page)
    card_count = sum(len(cards) for cards in sheets.values())
    return Report(str(file), clips, rows, card_count, size)


def _pick_thresholds(limits: Iterable[Threshold], blueprint: Blueprint) -> list[Threshold]:
    """Pick the thresholds on numeric signals, the first one of each side.

    Where a null counts as a number, a clip rejected before the signal is measured would be judged by it, so the signal
    of such a rule must be known before the first annotator.
    """
    usable: dict[tuple[str, bool], Threshold] = {}
    for limit in limits:
        signal = blueprint.signals.get(limit.column)
        early = limit.null is None or limit.column in blueprint.known_columns[0]
        if signal is not None and signal.kind in ("float", "int") and early:
            usable.setdefault((limit.column, limit.sign.startswith("<")), limit)
    return list(usable.values())


def _make_slider(
    con: duckdb.DuckDBPyConnection, name: str, signal: Signal, limits: Sequence[Threshold]
) -> Slider | None:
    column = quote_name(name)
    ((minimum, maximum),) = con.execute(f"SELECT min({column}), max({column}) FROM base").fetchall()
    if minimum is None:
        return None
    low, high = (
        next((limit for limit in limits if limit.column == name and limit.sign.startswith(sign)), None) for sign in "<>"
    )
    ends = [minimum, maximum, *(side.value for side in (low, high) if side)]
    minimum, maximum = float(min(ends)), float(max(ends))
    # A rule that rejects its own value, as `flashes >= 2` does, needs room to be loosened.
    margin = ((maximum - minimum) or 1.0) / _BINS
    minimum -= margin if low and low.value == minimum else 0.0
    maximum += margin if high and high.value == maximum else 0.0
    width = ((maximum - minimum) or 1.0) / _BINS
    counts = {True: [0] * _BINS, False: [0] * _BINS}
    rows = con.execute(
        f"SELECT status = 'kept', least(greatest(floor(({column} - $1) / $2), 0), {_BINS - 1})::INT AS bin, count(*) "
        f"FROM base WHERE {column} IS NOT NULL GROUP BY ALL",
        [minimum, width],
    ).fetchall()
    for is_kept, position, count in rows:
        counts[is_kept][position] = count
    return Slider(
        signal=name,
        unit=signal.unit,
        meaning=signal.meaning,
        minimum=minimum,
        maximum=maximum,
        low=low,
        high=high,
        kept_counts=counts[True],
        other_counts=counts[False],
    )


def _pack_rows(
    con: duckdb.DuckDBPyConnection, blueprint: Blueprint, sliders: Sequence[Slider], limits: Sequence[Threshold]
) -> tuple[dict[str, Any], int]:
    """Pack the data for the page's script; returns it and the number of clips. Gzipped: little-endian float64 per
    slider and clip, one slider after the other, then a byte per clip (1: stored and fully annotated, 2: a rule without
    a slider rejects it, 4: one of these is null). Failed clips are left out."""
    movable = {limit.rule for limit in limits}
    fixed = [f"({text}\n)" for rule, text in blueprint.recipe.rules.items() if rule not in movable]
    rejected = " OR ".join(fixed) or "false"
    columns = "".join(f", {quote_name(slider.signal)}::DOUBLE" for slider in sliders)
    table = con.sql(
        f"SELECT vdot_whole::INT + 2 * coalesce({rejected}, false)::INT + 4 * (({rejected}) IS NULL)::INT AS vdot_flags"
        f"{columns} FROM base WHERE status IN ('kept', 'rejected', 'pending') ORDER BY md5(clip_id) LIMIT {ROWS}"
    ).to_arrow_table()
    flags = table["vdot_flags"].to_numpy().astype(np.uint8)
    parts = [table[index + 1].to_numpy().astype("<f8").tobytes() for index in range(len(sliders))]
    packed = gzip.compress(b"".join([*parts, flags.tobytes()]), mtime=0)
    ((total,),) = con.execute("SELECT count(*) FROM base WHERE status IN ('kept', 'rejected', 'pending')").fetchall()
    settings = [
        {
            "signal": slider.signal,
            "least": slider.minimum,
            "most": slider.maximum,
            "low": asdict(slider.low) if slider.low else None,
            "high": asdict(slider.high) if slider.high else None,
        }
        for slider in sliders
    ]
    data = base64.b64encode(packed).decode()
    return {"sliders": settings, "rows": len(flags), "every": total, "data": data}, len(flags)


def _build_funnel(con: duckdb.DuckDBPyConnection) -> list[tuple[str, int, int]]:
    """(step, clips left after it, clips that it took): cut, each rule by how many it took, failures, pending."""
    ((remaining,),) = con.execute("SELECT count(*) FROM base").fetchall()
    steps = [("cut from the sources", remaining, 0)]
    taken = con.execute(
        "SELECT CASE status WHEN 'rejected' THEN rule WHEN 'failed' THEN 'failed: ' || code "
        "ELSE 'pending' END AS what, count(*) FROM base WHERE status <> 'kept' GROUP BY ALL "
        "ORDER BY any_value(status) <> 'rejected', any_value(status) <> 'failed', count(*) DESC, what"
    ).fetchall()
    for step, count in taken:
        remaining -= count
        steps.append((step or "a rule without a name", remaining, count))
    return steps


def _count_tasks(con: duckdb.DuckDBPyConnection, names: Sequence[str]) -> list[tuple[str, int]]:
    counts = dict(
        con.execute(
            "SELECT task, count(*) FROM (SELECT unnest(tasks) AS task FROM base WHERE status = 'kept') GROUP BY task"
        ).fetchall()
    )
    return [(name, counts.get(name, 0)) for name in names]


def _sum_seconds(con: duckdb.DuckDBPyConnection) -> list[tuple[str, float]]:
    rows: list[tuple[str, float]] = con.execute(
        "SELECT step.key, sum(step.value) FROM (SELECT unnest(map_entries(timings)) AS step FROM parts "
        "WHERE timings IS NOT NULL) GROUP BY ALL HAVING sum(step.value) > 0 ORDER BY 2 DESC, 1"
    ).fetchall()
    return rows


def _read_lineage(con: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    return values(
        con,
        "SELECT made.name, made.version, made.weights_id, made.weights_licence, count(DISTINCT clip_id) AS clips FROM "
        "(SELECT clip_id, unnest(lineage) AS made FROM clips WHERE status IN ('kept', 'pending', 'compared')) "
        "GROUP BY ALL ORDER BY 1, 2",
    )


def _make_sheets(con: duckdb.DuckDBPyConnection, out: Folder, limits: Sequence[Threshold]) -> dict[str, list[Card]]:
    """The cards that are shown, by kind; the choice follows from the clip ids alone."""
    kept_rows = values(con, f"SELECT * FROM base WHERE status = 'kept' ORDER BY md5(clip_id) LIMIT {_KEPT}")
    rejected_rows = values(
        con,
        "SELECT * FROM base WHERE status = 'rejected' "
        f"QUALIFY row_number() OVER (PARTITION BY rule ORDER BY md5(clip_id)) <= {_PER_RULE} "
        "ORDER BY rule, md5(clip_id) LIMIT 96",
    )
    failed_rows = values(
        con,
        "SELECT clip_id, source_uri, start_s, end_s, status, rule, code, stage, detail FROM base "
        "WHERE status = 'failed' UNION ALL BY NAME "
        "SELECT NULL AS clip_id, source_uri, status, rule, code, stage, detail FROM sources "
        f"WHERE status = 'failed' ORDER BY code, source_uri LIMIT {_FAILED}",
    )
    pending_rows = values(con, f"SELECT * FROM base WHERE status = 'pending' ORDER BY md5(clip_id) LIMIT {_NEAR}")
    return {
        "kept": [make_card(out, row, playing=True) for row in kept_rows],
        "near misses": [make_card(out, row) for row in _find_near_misses(con, limits)],
        "rejected": [make_card(out, row) for row in rejected_rows],
        "failed": [make_card(out, row) for row in failed_rows],
        "pending": [make_card(out, row) for row in pending_rows],
    }


def _find_near_misses(con: duckdb.DuckDBPyConnection, limits: Sequence[Threshold]) -> list[dict[str, Any]]:
    """The clips nearest to a threshold, relative to the spread of that signal."""
    queries = [
        f"(SELECT clip_id, {quote_text(limit.rule)} AS near_rule, {quote_name(limit.column)} AS near_value, "
        f"abs({quote_name(limit.column)} - {limit.value!r}) "
        f"/ "
        f"nullif((SELECT stddev({quote_name(limit.column)}) FROM base), 0) AS near FROM base "
        f"WHERE (status = 'kept' OR rule = {quote_text(limit.rule)}) AND {quote_name(limit.column)} IS NOT NULL "
        f"ORDER BY near, clip_id LIMIT {_NEAR})"
        for limit in limits
    ]
    if not queries:
        return []
    rows = values(
        con,
        f"SELECT base.*, near_rule, near_value FROM ({' UNION ALL '.join(queries)}) JOIN base USING (clip_id) "
        "WHERE near IS NOT NULL QUALIFY row_number() OVER (PARTITION BY clip_id ORDER BY near, near_rule) = 1 "
        "AND row_number() OVER (PARTITION BY near_rule ORDER BY near, clip_id) <= 3 "
        f"ORDER BY near, clip_id LIMIT {_NEAR}",
    )
    limit_by_rule = {limit.rule: limit for limit in limits}
    for row in rows:
        limit = limit_by_rule[row["near_rule"]]
        row["detail"] = f"{limit.with_value(limit.value)}  ({limit.column} = {row['near_value']:.4g})"
    return rows
