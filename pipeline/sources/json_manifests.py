"""Reads lists of sources from JSON, in the shapes that other tools write."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Iterator
from io import TextIOWrapper
from itertools import islice
from typing import Any, BinaryIO

from pipeline.errors import UsageError
from pipeline.sources.manifest_rows import Pairs, Row, check_row, find_source_column, require_source_column

# A document is read whole, which takes about ten times its size in memory; JSON lines have no such limit.
MAX_JSON_BYTES = 256 * 10**6
SHAPES = "a list of objects or of texts, an object with one such list, or one object per line"


def read_json_lines(uri: str, file: BinaryIO) -> Iterator[Row]:
    """The rows of a file with one JSON object per line."""
    yield from _parse_lines(uri, TextIOWrapper(file, encoding="utf-8-sig"))


def read_json(uri: str, file: BinaryIO) -> Iterator[Row]:
    """The rows of a JSON document, or of JSON lines under its name.

    The document is a list of objects or of names, an object with one such list among its values, an object of
    columns (each a list, as long as the others, or an object as pandas writes it), or one row.
    """
    if _holds_lines(file):
        yield from read_json_lines(uri, file)
        return
    data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        size = f"{MAX_JSON_BYTES // 10**6} MB"
        raise UsageError(f"the manifest {uri} is larger than {size} and would have to be read whole: save it as .jsonl")
    text = data.decode("utf-8-sig")
    try:
        document = json.loads(text, object_pairs_hook=Pairs)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the manifest {uri} is not JSON: {error}") from error
    for number, item in enumerate(_find_items(uri, document), 1):
        if isinstance(item, str):
            yield check_row(uri, number, "the list", [("the list", item)])
        elif isinstance(item, Pairs):
            yield check_row(uri, number, require_source_column(uri, [name for name, _ in item]), item)
        else:
            raise UsageError(f"the manifest {uri}: row {number} is neither an object nor a text")


def _parse_lines(uri: str, lines: TextIOWrapper) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=Pairs)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"the manifest {uri}: line {number} is not JSON: {error}") from error
        if not isinstance(row, Pairs):
            raise UsageError(f"the manifest {uri}: line {number} is not a JSON object")
        yield check_row(uri, number, require_source_column(uri, [name for name, _ in row]), row)


def _holds_lines(file: BinaryIO) -> bool:
    """Whether the first line is a complete object and the next begins another; leaves the file at its start."""
    lines = (line.removeprefix(BOM_UTF8).strip() for line in iter(lambda: file.readline(MAX_JSON_BYTES), b""))
    first, second = [*islice(filter(None, lines), 2), b"", b""][:2]
    file.seek(0)
    if not second.startswith(b"{"):
        return False
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _find_items(uri: str, document: Any) -> list[Any]:
    if not isinstance(document, Pairs):
        if not isinstance(document, list):
            raise UsageError(f"the manifest {uri} holds no list of sources: expected {SHAPES}")
        return document
    names = [name for name, _ in document]
    column = find_source_column(names)
    values = dict(document)
    if column is not None and isinstance(values[column], str):
        return [document]
    if column is not None and len(values) == len(names):
        columns = {name: _column_cells(value) for name, value in document}
        cells = [column_cells for column_cells in columns.values() if column_cells is not None]
        if len(cells) == len(names) and len({len(column_cells) for column_cells in cells}) == 1:
            return [Pairs(zip(names, row, strict=True)) for row in zip(*cells, strict=True)]
    lists = [value for _, value in document if isinstance(value, list) and not isinstance(value, Pairs)]
    source_lists = [items for items in lists if _name_sources(items)]
    text_lists = [items for items in lists if items and all(isinstance(item, str) for item in items)]
    candidates = source_lists or text_lists
    if len(candidates) != 1:
        count = f"{len(candidates)} lists" if candidates else "no list"
        raise UsageError(f"the manifest {uri} has {count} of sources, under {', '.join(names)}: expected {SHAPES}")
    return candidates[0]


def _column_cells(column: Any) -> list[Any] | None:
    """The cells of a column, which is a list, or an object by row number as pandas writes it."""
    if isinstance(column, Pairs):
        return [value for _, value in column] if all(name.isdecimal() for name, _ in column) else None
    return column if isinstance(column, list) else None


def _name_sources(items: list[Any]) -> bool:
    return bool(items) and all(
        isinstance(item, Pairs) and find_source_column(name for name, _ in item) is not None for item in items
    )
