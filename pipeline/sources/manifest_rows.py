"""Rows of a manifest, the same for every file format: a source, and the other columns as text."""

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
    """A JSON object as written, in which a name may come twice."""


def find_source_column(names: Iterable[str]) -> str | None:
    """The column that names the sources; None if there is none."""
    by_plain_name = {name.strip().lower(): name for name in reversed(list(names))}
    return next((by_plain_name[name] for name in SOURCE_COLUMNS if name in by_plain_name), None)


def require_source_column(uri: str, names: list[str]) -> str:
    """The column of the manifest `uri` that names the sources. Raises UsageError if there is none."""
    column = find_source_column(names)
    if column is None:
        expected = ", ".join(SOURCE_COLUMNS)
        columns = f"its columns are: {', '.join(names)}" if names else "it has none"
        raise UsageError(f"the manifest {uri} has no source column: one of {expected} is needed, and {columns}")
    return column


def check_row(uri: str, number: int, column: str, cells: Iterable[tuple[str, Any]]) -> Row:
    """The row with this number; `cells` are pairs of a name and a value, and a name may come twice.

    Raises UsageError, naming the manifest and the row, if it has no source or contradicts itself.
    """
    values: dict[str, str] = {}
    for name, value in cells:
        text = _to_text(_to_plain(value))
        if text is None:
            continue
        if not name.strip():
            raise UsageError(f"the manifest {uri}: row {number} has {text!r} in a column without a name")
        if not _is_unicode(name + text):
            raise UsageError(f"the manifest {uri}: row {number} has half a character (a lone surrogate) in {name!r}")
        if name == column and not isinstance(value, str):
            break
        earlier = values.setdefault(column if name == column else _catalog_name(name), text)
        if earlier != text:
            raise UsageError(f"the manifest {uri}: row {number} says {earlier!r} and {text!r} in two columns {name!r}")
    source = values.pop(column, "").strip()
    if not source:
        raise UsageError(f"the manifest {uri}: row {number} has no source in column {column!r}")
    return source, values


def _catalog_name(name: str) -> str:
    """The name of a column in the catalog, which has one spelling of licence."""
    return "licence" if name.strip().lower() in LICENCE_COLUMNS else name


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _to_plain(value: Any) -> Any:
    """The value with dictionaries in place of pairs."""
    if isinstance(value, Pairs):
        return {name: _to_plain(inner) for name, inner in value}
    return [_to_plain(inner) for inner in value] if isinstance(value, list) else value


def _to_text(value: object) -> str | None:
    """A cell as text; None if it has no value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool | list | dict):
        return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    return str(value)
