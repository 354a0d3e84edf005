"""So that a row of a manifest means the same in whatever file format it stands: a source, and columns as text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from pipeline.errors import UsageError

SOURCE_COLUMNS = ("uri", "url", "path", "source", "video", "file")
LICENCE_COLUMNS = ("licence", "license")

# What the user wrote in the source column, and the other columns as text.
Row = tuple[str, dict[str, str]]


class Pairs(list[tuple[str, Any]]):
    """A JSON object as it is written, where a name may come twice."""


def find_source_column(names: Iterable[str]) -> str | None:
    """The column that names the sources; None without one."""
    by_plain_name = {name.strip().lower(): name for name in reversed(list(names))}
    return next((by_plain_name[name] for name in SOURCE_COLUMNS if name in by_plain_name), None)


def source_column(uri: str, names: list[str]) -> str:
    """The column of the manifest `uri` that names the sources. Raises UsageError without one."""
    column = find_source_column(names)
    if column is None:
        wanted = ", ".join(SOURCE_COLUMNS)
        columns = f"its columns are: {', '.join(names)}" if names else "it has none"
        raise UsageError(f"the manifest {uri} has no source column: one of {wanted} is needed, and {columns}")
    return column


def checked_row(uri: str, number: int, column: str, cells: Iterable[tuple[str, Any]]) -> Row:
    """The row of this number; `cells` are pairs of a name and a value, and a name may come twice.

    Raises UsageError, naming the manifest and the row, where it has no source or contradicts itself.
    """
    values: dict[str, str] = {}
    for name, value in cells:
        text = _text(_plain(value))
        if text is None:
            continue
        if not name.strip():
            raise UsageError(f"the manifest {uri}: row {number} has {text!r} in a column without a name")
        if not _is_unicode(name + text):
            raise UsageError(f"the manifest {uri}: row {number} has half a character (a lone surrogate) in {name!r}")
        if name == column and not isinstance(value, str):
            break
        before = values.setdefault(column if name == column else _column(name), text)
        if before != text:
            raise UsageError(f"the manifest {uri}: row {number} says {before!r} and {text!r} in two columns {name!r}")
    source = values.pop(column, "").strip()
    if not source:
        raise UsageError(f"the manifest {uri}: row {number} has no source in column {column!r}")
    return source, values


def _column(name: str) -> str:
    """What the catalog calls a column: a licence is a licence however it is spelt."""
    return "licence" if name.strip().lower() in LICENCE_COLUMNS else name


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plain(value: Any) -> Any:
    """The value with dictionaries for pairs."""
    if isinstance(value, Pairs):
        return {name: _plain(inner) for name, inner in value}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _text(value: object) -> str | None:
    """A cell as text; None where there is no value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool | list | dict):
        return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    return str(value)
