"""The result of one check before a run: what was found, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from rich.markup import escape
from rich.table import Table


class CheckStatus(StrEnum):
    """Whether a run may start: `WARN` may cost time or some sources, `FAIL` must be repaired first."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


_COLOURS = {CheckStatus.OK: "green", CheckStatus.WARN: "yellow", CheckStatus.FAIL: "red"}


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check: what was found, and what to do unless it is ok."""

    name: str
    status: CheckStatus
    found: str
    advice: str = ""


def has_failure(checks: Iterable[Check]) -> bool:
    """Whether something must be repaired before a run."""
    return any(check.status == CheckStatus.FAIL for check in checks)


def make_table(checks: Iterable[Check]) -> Table:
    """Make a table of checks for the terminal."""
    table = Table()
    for column in ("check", "", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for check in checks:
        texts = [escape(text) for text in (check.name, check.found, check.advice)]
        table.add_row(texts[0], f"[{_COLOURS[check.status]}]{check.status}[/]", *texts[1:])
    return table
