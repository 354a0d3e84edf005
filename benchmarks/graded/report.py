"""What the measurements say under a recipe: shares found by strength and false alarms, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import duckdb
import numpy as np

from benchmarks.graded.faults import FAULTS, Fault, Kind
from benchmarks.graded.sources import HALVES
from benchmarks.graded.study import STANDS, UNTOUCHED, Measured, Values
from pipeline.curation.dedup import THRESHOLD
from pipeline.recipe import registry
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.rules import SQL_TYPES, connect, parse_columns, quote_name
from pipeline.video.shots import Evidence, TransNet

# The normal quantile of a 95 % interval.
_Z = 1.96
# A cut is where it should be up to so many frames; a dissolve is seen anywhere within it.
_NEAR = 3

Answer = Callable[[Values], bool]


@dataclass(frozen=True, slots=True)
class Share:
    """So many `found` of `of`, and Wilson's 95 % interval of the share; both ends are 0 and 1 of none."""

    found: int
    of: int
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Ladder:
    """How one fault is found on one half: of each strength the share; `alarms` of the same on untouched sources."""

    fault: str
    by: str
    unit: str
    half: str
    wanted: bool
    strengths: dict[float, Share]
    alarms: Share | None
    alarmed: list[str]


def share(found: int, of: int) -> Share:
    """With Wilson's score interval, which holds for few and for all."""
    if not of:
        return Share(0, 0, 0.0, 1.0)
    rate, spread = found / of, _Z**2 / of
    middle = (rate + spread / 2) / (1 + spread)
    reach = _Z / (1 + spread) * math.sqrt(rate * (1 - rate) / of + spread / of / 4)
    return Share(found, of, round(max(0.0, middle - reach), 4), round(min(1.0, middle + reach), 4))


def report(measured: Iterable[Measured], recipe: Recipe, tags: dict[str, frozenset[str]]) -> dict[str, Any]:
    """Every fault on both halves, and every rule's false alarms on untouched clips, as JSON-able values.

    `tags`: of each source, for those that a fault excuses.
    """
    rows = list(measured)
    con = connect()
    kinds: dict[str, str] = {name: signal.kind for name, signal in registry.collect_signals(*_makers(recipe)).items()}
    kinds |= dict.fromkeys(("width", "height", "source_width", "source_height"), "int") | {"source_fps": "float"}
    ladders = [asdict(_ladder(rows, fault, half, recipe, tags, con, kinds)) for fault in FAULTS for half in HALVES]
    return {
        "sources": {half: sorted({row.source for row in rows if row.half == half}) for half in HALVES},
        "ladders": [ladder for ladder in ladders if ladder["strengths"]],
        "untouched": [asdict(alarm) for alarm in _untouched(rows, recipe, con, kinds)],
        "copies": [_strangers(rows, half) for half in HALVES],
    }


@dataclass(frozen=True, slots=True)
class Alarm:
    """How many untouched sources of one half one rule claims, by any of their pieces, and which."""

    rule: str
    half: str
    share: Share
    sources: list[str]


def _makers(recipe: Recipe) -> tuple[list[str], list[str]]:
    return [name for stage in recipe.stages for name in stage], list(recipe.filters)


def _ladder(
    rows: Sequence[Measured],
    fault: Fault,
    half: str,
    recipe: Recipe,
    tags: dict[str, frozenset[str]],
    con: duckdb.DuckDBPyConnection,
    kinds: dict[str, str],
) -> Ladder:
    answer, by = _answer(fault, recipe, con, kinds)
    strengths: dict[float, list[bool]] = {}
    for row in rows:
        if row.fault == fault.name and row.half == half:
            strengths.setdefault(row.strength, []).append(answer(row.values))
    counted = {strength: share(sum(answers), len(answers)) for strength, answers in strengths.items()}
    alarms = None
    alarmed: list[str] = []
    if isinstance(answer, _Predicate):
        # Of most sources it is not known what their camera does.
        fit = [
            row for row in answer.measured(rows)
            if row.fault == UNTOUCHED and row.half == half and not tags[row.source] & fault.excused
            and (not fault.held or STANDS in tags[row.source])
        ]  # fmt: skip
        alarmed = sorted({row.source for row in fit if answer(row.values)})
        alarms = share(len(alarmed), len({row.source for row in fit}))
    elif fault.kind is Kind.SHOT and fault.cut:
        whole = [row for row in rows if row.half == half and "middle" in row.values and row.fault == UNTOUCHED]
        whole = [row for row in whole if "cuts" not in tags[row.source]]
        alarmed = sorted(row.source for row in whole if len(_shots(row.values)) != 1)
        alarms = share(len(alarmed), len(whole))
    return Ladder(fault.name, by, fault.unit, half, fault.cut, counted, alarms, alarmed)


def _answer(fault: Fault, recipe: Recipe, con: duckdb.DuckDBPyConnection, kinds: dict[str, str]) -> tuple[Answer, str]:
    """What finds a fault, as a function of what was measured, and its name."""
    if fault.kind is Kind.COPY:
        return lambda values: bool(values["cosine"] >= THRESHOLD), "dedup"
    if fault.kind is Kind.SHOT:
        return _ends_in_the_middle if fault.cut else lambda values: len(_shots(values)) != 1, "shots"
    rules = [rule for rule in fault.rules if rule in recipe.rules]
    predicate = fault.predicate or " OR ".join(f"({recipe.rules[rule]}\n)" for rule in rules) or "false"
    return _Predicate(predicate, con, kinds), fault.predicate or ", ".join(rules)


class _Predicate:
    """An SQL predicate as a function of what was measured."""

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

    def measured(self, rows: Iterable[Measured]) -> list[Measured]:
        """Those of which all is known that it asks for."""
        return [row for row in rows if row.values.keys() >= set(self.columns)]


def _untouched(
    rows: Sequence[Measured], recipe: Recipe, con: duckdb.DuckDBPyConnection, kinds: dict[str, str]
) -> Iterable[Alarm]:
    clips = [row for row in rows if row.fault == UNTOUCHED]
    for rule, text in recipe.rules.items():
        answer = _Predicate(text, con, kinds)
        measured = answer.measured(clips)
        for half in HALVES if measured else ():
            of = {row.source for row in measured if row.half == half}
            claimed = sorted({row.source for row in measured if row.half == half and answer(row.values)})
            yield Alarm(rule, half, share(len(claimed), len(of)), claimed)


def _strangers(rows: Sequence[Measured], half: str) -> dict[str, Any]:
    """Pairs of different sources whose first pieces pass for copies."""
    vectors = {row.source: np.array(row.values["embedding"]) for row in rows
               if row.half == half and "embedding" in row.values}  # fmt: skip
    names = sorted(vectors)
    cosines = {
        f"{one} and {other}": float(vectors[one] @ vectors[other]) for i, one in enumerate(names) for other in names[:i]
    }
    alarmed = sorted(pair for pair, cosine in cosines.items() if cosine >= THRESHOLD)
    return {"half": half, "alarms": asdict(share(len(alarmed), len(cosines))), "alarmed": alarmed,
            "nearest": max(cosines.values(), default=None)}  # fmt: skip


def _shots(values: Values) -> list[tuple[int, int]]:
    return TransNet.shots(Evidence(*(np.array(values[field.name], np.float32) for field in fields(Evidence))))


def _ends_in_the_middle(values: Values) -> bool:
    count = len(values["middle"])
    ends = [(last, first) for (_, last), (first, _) in zip(_shots(values)[:-1], _shots(values)[1:], strict=True)]
    return any(last - _NEAR <= count // 2 <= first + _NEAR for last, first in ends)


def table(result: dict[str, Any]) -> str:
    """The reporting half as a table in Markdown: the share found at each strength, in per cent, and its interval."""
    lines = [
        "| fault, by what | strength: % found (95 % interval) | false alarms |",
        "|---|---|---|",
    ]
    for ladder in result["ladders"]:
        if ladder["half"] != HALVES[1]:
            continue
        cells = [f"{strength:g}: {_percent(found)}" for strength, found in ladder["strengths"].items()]
        alarms = ladder["alarms"]
        what = f"{ladder['fault']} ({ladder['unit']}), `{ladder['by']}`"
        lines.append(f"| {what} | {'; '.join(cells)} | {_counts(alarms) if alarms else '-'} |")
    claimed: dict[str, str] = {}
    for alarm in result["untouched"]:
        if alarm["half"] == HALVES[1] and alarm["sources"]:
            claimed[alarm["rule"]] = f"`{alarm['rule']}` {_counts(alarm['share'])}"
    return "\n".join([*lines, "", f"Rules that reject untouched clips: {', '.join(claimed.values()) or 'none'}."])


def _percent(found: dict[str, Any]) -> str:
    if not found["of"]:
        return "-"
    return f"{100 * found['found'] / found['of']:.0f} ({100 * found['low']:.0f}–{100 * found['high']:.0f})"


def _counts(found: dict[str, Any]) -> str:
    return f"{found['found']} of {found['of']} ({100 * found['low']:.0f}–{100 * found['high']:.0f} %)"
