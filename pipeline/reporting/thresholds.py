"""Finds rules of the simplest kind, `luma < 40` or `coalesce(sharpness, 1) < 0.27`, which a slider can move."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_SIMPLE = re.compile(
    rf"\s*(?:coalesce\(\s*(?P<given>\w+)\s*,\s*(?P<null>{_NUMBER})\s*\)|(?P<plain>\w+))"
    rf"\s*(?P<sign><=|>=|<|>)\s*(?P<value>{_NUMBER})\s*(?:--.*)?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Threshold:
    """A rule that rejects a clip whose `column` is on the wrong side of `value`; `null` is what a null counts as."""

    rule: str
    column: str
    sign: str
    value: float
    null: float | None

    def with_value(self, value: float) -> str:
        """The rule as `select --rule` takes it, with another number."""
        column = self.column if self.null is None else f"coalesce({self.column}, {self.null:.15g})"
        return f"{self.rule}: {column} {self.sign} {value:.15g}"


def find_thresholds(rules: Mapping[str, str]) -> list[Threshold]:
    """Find the rules that are thresholds."""
    matches = ((name, _SIMPLE.fullmatch(text)) for name, text in rules.items())
    return [
        Threshold(
            name,
            match["given"] or match["plain"],
            match["sign"],
            float(match["value"]),
            None if match["null"] is None else float(match["null"]),
        )
        for name, match in matches
        if match
    ]
