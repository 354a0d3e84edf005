"""The report's sliders: a histogram of each signal, and the values from which the page counts what another threshold
would keep."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import duckdb
import numpy as np

from annotators.base import Signal
from pipeline.catalog.predicates import IS_JUDGED, IS_KEPT
from pipeline.recipe.blueprint import Blueprint
from pipeline.recipe.rules import quote_name
from pipeline.reporting.thresholds import Threshold

ROWS = 20_000
"""The most clips whose values are in the page."""

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


def pick_thresholds(limits: Iterable[Threshold], blueprint: Blueprint) -> list[Threshold]:
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


def make_sliders(con: duckdb.DuckDBPyConnection, blueprint: Blueprint, limits: Sequence[Threshold]) -> list[Slider]:
    """Make a slider for each numeric signal that was measured on any clip of the table `base`, those of rules first."""
    numeric = {name: signal for name, signal in blueprint.signals.items() if signal.kind in ("float", "int")}
    sliders = [slider for name, signal in numeric.items() if (slider := _make_slider(con, name, signal, limits))]
    return sorted(sliders, key=lambda slider: slider.low is None and slider.high is None)


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
        f"SELECT {IS_KEPT}, least(greatest(floor(({column} - $1) / $2), 0), {_BINS - 1})::INT AS bin, count(*) "
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


def pack_rows(
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
        f"{columns} FROM base WHERE {IS_JUDGED} ORDER BY md5(clip_id) LIMIT {ROWS}"
    ).to_arrow_table()
    flags = table["vdot_flags"].to_numpy().astype(np.uint8)
    parts = [table[index + 1].to_numpy().astype("<f8").tobytes() for index in range(len(sliders))]
    packed = gzip.compress(b"".join([*parts, flags.tobytes()]), mtime=0)
    ((total,),) = con.execute(f"SELECT count(*) FROM base WHERE {IS_JUDGED}").fetchall()
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
