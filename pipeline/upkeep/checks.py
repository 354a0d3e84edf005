"""The result of one check before a run: what was found, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rich.markup import escape
from rich.table import Table

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check: what was found, and what to do unless it is ok."""

    name: str
    status: Status
    found: str
    advice: str = ""


def make_table(checks: Iterable[Check]) -> Table:
    """Make a table of checks for the terminal."""
    table = Table()
    for column in ("check", "", "found", "what to do"):
        table.add_column(column, overflow="fold")
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    for check in checks:
        texts = [escape(text) for text in (check.name, check.found, check.advice)]
        table.add_row(texts[0], f"[{colours[check.status]}]{check.status}[/]", *texts[1:])
    return table
