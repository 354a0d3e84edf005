"""Applies a recipe to the measurements: shares found by strength and false alarms, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import duckdb
import numpy as np

from benchmarks.graded.faults import FAULTS, Fault, Kind
from benchmarks.graded.sources import HALVES
from benchmarks.graded.study import STANDS, UNTOUCHED, Measurement, Values
from pipeline.curation.dedup import THRESHOLD
from pipeline.recipe import registry
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.rules import SQL_TYPES, connect, parse_columns, quote_name
from pipeline.video.shots import Evidence, TransNet

# The normal quantile of a 95 % interval.
_Z = 1.96
# Frames by which a cut may be off; a dissolve counts as found anywhere within it.
_NEAR = 3

Answer = Callable[[Values], bool]


@dataclass(frozen=True, slots=True)
class Share:
    """`found` of `of`, and Wilson's 95 % interval of the share, from 0 to 1 if `of` is 0."""

    found: int
    of: int
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Ladder:
    """How often one fault is found on one half: the share by strength; `alarms`: the same on untouched sources."""

    fault: str
    by: str
    unit: str
    half: str
    wanted: bool
    strengths: dict[float, Share]
    alarms: Share | None
    alarmed: list[str]


def share(hits: int, total: int) -> Share:
    """A share with Wilson's score interval, which also holds for small counts and for shares of 0 and 1."""
    if not total:
        return Share(0, 0, 0.0, 1.0)
    rate, spread = hits / total, _Z**2 / total
    middle = (rate + spread / 2) / (1 + spread)
    reach = _Z / (1 + spread) * math.sqrt(rate * (1 - rate) / total + spread / total / 4)
    return Share(hits, total, round(max(0.0, middle - reach), 4), round(min(1.0, middle + reach), 4))


def build_report(measured: Iterable[Measurement], recipe: Recipe, tags: dict[str, frozenset[str]]) -> dict[str, Any]:
    """Every fault on both halves, and every rule's false alarms on untouched clips, as values for JSON.

    `tags`: those of each source, which a fault may excuse.
    """
    rows = list(measured)
    con = connect()
    kinds: dict[str, str] = {
        name: signal.kind for name, signal in registry.collect_signals(*_signal_makers(recipe)).items()
    }
    kinds |= dict.fromkeys(("width", "height", "source_width", "source_height"), "int") | {"source_fps": "float"}
    ladders = [
        asdict(_build_ladder(rows, fault, half, recipe, tags, con, kinds)) for fault in FAULTS for half in HALVES
    ]
    return {
        "sources": {half: sorted({row.source for row in rows if row.half == half}) for half in HALVES},
        "ladders": [ladder for ladder in ladders if ladder["strengths"]],
        "untouched": [asdict(alarm) for alarm in _untouched_alarms(rows, recipe, con, kinds)],
        "copies": [_compare_strangers(rows, half) for half in HALVES],
    }


@dataclass(frozen=True, slots=True)
class Alarm:
    """Which untouched sources of a half a rule claims, by any of their pieces, and their share."""

    rule: str
    half: str
    share: Share
    sources: list[str]


def _signal_makers(recipe: Recipe) -> tuple[list[str], list[str]]:
    return [name for stage in recipe.stages for name in stage], list(recipe.filters)


def _build_ladder(
    rows: Sequence[Measurement],
    fault: Fault,
    half: str,
    recipe: Recipe,
    tags: dict[str, frozenset[str]],
    con: duckdb.DuckDBPyConnection,
    kinds: dict[str, str],
) -> Ladder:
    answer, by = _choose_answer(fault, recipe, con, kinds)
    strengths: dict[float, list[bool]] = {}
    for row in rows:
        if row.fault == fault.name and row.half == half:
            strengths.setdefault(row.strength, []).append(answer(row.values))
    shares = {strength: share(sum(answers), len(answers)) for strength, answers in strengths.items()}
    alarms = None
    alarmed: list[str] = []
    if isinstance(answer, _Predicate):
        # For most sources the camera's motion is not known.
        fitting = [
            row for row in answer.select_measured(rows)
            if row.fault == UNTOUCHED and row.half == half and not tags[row.source] & fault.excused
            and (not fault.held or STANDS in tags[row.source])
        ]  # fmt: skip
        alarmed = sorted({row.source for row in fitting if answer(row.values)})
        alarms = share(len(alarmed), len({row.source for row in fitting}))
    elif fault.kind is Kind.SHOT and fault.cut:
        untouched = [
            row for row in rows if row.half == half and "middle" in row.values and row.fault == UNTOUCHED
            and "cuts" not in tags[row.source]
        ]  # fmt: skip
        alarmed = sorted(row.source for row in untouched if len(_find_shots(row.values)) != 1)
        alarms = share(len(alarmed), len(untouched))
    return Ladder(fault.name, by, fault.unit, half, fault.cut, shares, alarms, alarmed)


def _choose_answer(
    fault: Fault, recipe: Recipe, con: duckdb.DuckDBPyConnection, kinds: dict[str, str]
) -> tuple[Answer, str]:
    """The function of measured values that finds a fault, and its name."""
    if fault.kind is Kind.COPY:
        return lambda values: bool(values["cosine"] >= THRESHOLD), "dedup"
    if fault.kind is Kind.SHOT:
        return _ends_in_the_middle if fault.cut else lambda values: len(_find_shots(values)) != 1, "shots"
    rules = [rule for rule in fault.rules if rule in recipe.rules]
    predicate = fault.predicate or " OR ".join(f"({recipe.rules[rule]}\n)" for rule in rules) or "false"
    return _Predicate(predicate, con, kinds), fault.predicate or ", ".join(rules)


class _Predicate:
    """An SQL predicate as a function of measured values."""

    def __init__(self, text: str, con: duckdb.DuckDBPyConnection, kinds: dict[str, str]) -> None:
        self.columns = parse_columns("rule", text, con)
        row = (
            ", ".join(f"CAST(? AS {SQL_TYPES[kinds[column]]}) AS {quote_name(column)}" for column in self.columns)
            or "1"
        )
        self._sql = f"SELECT ({text}\n) FROM (SELECT {row})"
        self._con = con

    def __call__(self, values: Values) -> bool:
        answer = self._con.execute(self._sql, [values.get(column) for column in self.columns]).fetchone()
        assert answer is not None
        return bool(answer[0])

    def select_measured(self, rows: Iterable[Measurement]) -> list[Measurement]:
        """The rows that have a value for every column of the predicate."""
        return [row for row in rows if row.values.keys() >= set(self.columns)]


def _untouched_alarms(
    rows: Sequence[Measurement], recipe: Recipe, con: duckdb.DuckDBPyConnection, kinds: dict[str, str]
) -> Iterable[Alarm]:
    clips = [row for row in rows if row.fault == UNTOUCHED]
    for rule, text in recipe.rules.items():
        answer = _Predicate(text, con, kinds)
        measured = answer.select_measured(clips)
        for half in HALVES if measured else ():
            sources = {row.source for row in measured if row.half == half}
            claimed = sorted({row.source for row in measured if row.half == half and answer(row.values)})
            yield Alarm(rule, half, share(len(claimed), len(sources)), claimed)


def _compare_strangers(rows: Sequence[Measurement], half: str) -> dict[str, Any]:
    """False alarms of the copy detector: pairs of different sources whose first pieces pass for copies."""
    vectors = {row.source: np.array(row.values["embedding"]) for row in rows
               if row.half == half and "embedding" in row.values}  # fmt: skip
    names = sorted(vectors)
    cosines = {
        f"{first} and {second}": float(vectors[first] @ vectors[second])
        for i, first in enumerate(names)
        for second in names[:i]
    }
    alarmed = sorted(pair for pair, cosine in cosines.items() if cosine >= THRESHOLD)
    return {"half": half, "alarms": asdict(share(len(alarmed), len(cosines))), "alarmed": alarmed,
            "nearest": max(cosines.values(), default=None)}  # fmt: skip


def _find_shots(values: Values) -> list[tuple[int, int]]:
    return TransNet.shots(Evidence(*(np.array(values[field.name], np.float32) for field in fields(Evidence))))


def _ends_in_the_middle(values: Values) -> bool:
    count = len(values["middle"])
    ends = [
        (last, first) for (_, last), (first, _) in zip(_find_shots(values)[:-1], _find_shots(values)[1:], strict=True)
    ]
    return any(last - _NEAR <= count // 2 <= first + _NEAR for last, first in ends)


def format_table(report: dict[str, Any]) -> str:
    """The reporting half as a table in Markdown: the share found at each strength, in per cent, and its interval."""
    lines = [
        "| fault, detected by | strength: % found (95 % interval) | false alarms |",
        "|---|---|---|",
    ]
    for ladder in report["ladders"]:
        if ladder["half"] != HALVES[1]:
            continue
        cells = [f"{strength:g}: {_format_percent(result)}" for strength, result in ladder["strengths"].items()]
        alarms = ladder["alarms"]
        label = f"{ladder['fault']} ({ladder['unit']}), `{ladder['by']}`"
        lines.append(f"| {label} | {'; '.join(cells)} | {_format_counts(alarms) if alarms else '-'} |")
    alarms_by_rule: dict[str, str] = {}
    for alarm in report["untouched"]:
        if alarm["half"] == HALVES[1] and alarm["sources"]:
            alarms_by_rule[alarm["rule"]] = f"`{alarm['rule']}` {_format_counts(alarm['share'])}"
    return "\n".join(
        [*lines, "", f"Rules that reject untouched clips: {', '.join(alarms_by_rule.values()) or 'none'}."]
    )


def _format_percent(result: dict[str, Any]) -> str:
    if not result["of"]:
        return "-"
    return f"{100 * result['found'] / result['of']:.0f} ({100 * result['low']:.0f}–{100 * result['high']:.0f})"


def _format_counts(result: dict[str, Any]) -> str:
    return f"{result['found']} of {result['of']} ({100 * result['low']:.0f}–{100 * result['high']:.0f} %)"
