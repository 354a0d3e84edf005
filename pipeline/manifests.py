"""So that a list of sources in any common file format is one stream of rows, whatever its length."""

from __future__ import annotations

import csv
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UsageError
from pipeline.remote import filesystem, retried

SOURCE_COLUMNS = ("uri", "url", "path", "source", "video", "file")
LICENCE_COLUMNS = ("licence", "license")
BATCH_ROWS = 1024

# What the user wrote in the source column, and the other columns as text.
Row = tuple[str, dict[str, str]]


def is_manifest(uri: str) -> bool:
    """Whether the file's suffix says that it lists sources."""
    return _suffix(uri) in _READERS


def rows(uri: str) -> Iterator[Row]:
    """The rows of a manifest, local or remote, read as they are asked for.

    Raises UsageError, naming the manifest and the row, when it cannot be read or has no source column.
    """
    if "://" not in uri:
        yield from _local_rows(uri, Path(uri))
        return
    # A whole copy, as a stream that breaks in the middle could not be taken up again.
    with tempfile.TemporaryDirectory(prefix="vdot-manifest-") as folder:
        fs, path = filesystem(uri)
        copy = Path(folder) / "manifest"
        try:
            retried(f"reading {uri}", lambda: fs.get_file(path, str(copy)))
        except (FileNotFoundError, PermissionError) as error:
            raise UsageError(f"the manifest {uri} cannot be read: {_why(error)}") from error
        yield from _local_rows(uri, copy)


def _local_rows(uri: str, file: Path) -> Iterator[Row]:
    try:
        yield from _READERS[_suffix(uri)](uri, file)
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise UsageError(f"the manifest {uri} cannot be read: {_why(error)}") from error


def _suffix(uri: str) -> str:
    path = urlsplit(uri).path if uri.startswith(("http://", "https://")) else uri
    return PurePosixPath(path).suffix.lower()


def _text_rows(uri: str, file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig") as lines:
        for line in lines:
            text = line.strip()
            if text and not text.startswith("#"):
                yield text, {}


def _csv_rows(uri: str, file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        table = csv.reader(lines)
        header = next(table, [])
        column = _source_column(uri, header)
        for number, row in enumerate(filter(None, table), 1):
            if len(row) > len(header):
                raise UsageError(f"the manifest {uri}: row {number} has more cells than the header has names")
            # CSV cannot tell an empty text from none.
            yield _row(uri, number, column, zip(header, (cell or None for cell in row), strict=False))


def _json_rows(uri: str, file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, object_pairs_hook=_Pairs)
            except json.JSONDecodeError as error:
                raise UsageError(f"the manifest {uri}: line {number} is no JSON: {error}") from error
            if not isinstance(row, _Pairs):
                raise UsageError(f"the manifest {uri}: line {number} is no JSON object")
            yield _row(uri, number, _source_column(uri, [name for name, _ in row]), row)


def _parquet_rows(uri: str, file: Path) -> Iterator[Row]:
    with pq.ParquetFile(file) as table:
        column = _source_column(uri, table.schema_arrow.names)
        number = 0
        for batch in table.iter_batches(batch_size=BATCH_ROWS):
            for row in zip(*(values.to_pylist() for values in batch.columns), strict=True):
                number += 1
                yield _row(uri, number, column, zip(batch.schema.names, row, strict=True))


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it is written, where a name may come twice."""


def _plain(value: Any) -> Any:
    """The value with dictionaries for pairs."""
    if isinstance(value, _Pairs):
        return {name: _plain(inner) for name, inner in value}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


_READERS: dict[str, Callable[[str, Path], Iterator[Row]]] = {
    ".txt": _text_rows,
    ".csv": _csv_rows,
    ".jsonl": _json_rows,
    ".parquet": _parquet_rows,
}


def _source_column(uri: str, names: list[str]) -> str:
    by_plain_name = {name.strip().lower(): name for name in reversed(names)}
    found = next((by_plain_name[name] for name in SOURCE_COLUMNS if name in by_plain_name), None)
    if found is None:
        wanted = ", ".join(SOURCE_COLUMNS)
        told = f"its columns are: {', '.join(names)}" if names else "it has none"
        raise UsageError(f"the manifest {uri} has no source column: one of {wanted} is needed, and {told}")
    return found


def _why(error: BaseException) -> str:
    return "it is not UTF-8; save it as such" if isinstance(error, UnicodeDecodeError) else str(error)


def _row(uri: str, number: int, column: str, cells: Iterable[tuple[str, Any]]) -> Row:
    """What a row says; `cells` are pairs of a name and a value, and a name may come twice."""
    said: dict[str, str] = {}
    for name, value in cells:
        text = _text(_plain(value))
        if text is None:
            continue
        if not name.strip():
            raise UsageError(f"the manifest {uri}: row {number} has {text!r} in a column without a name")
        if name == column and not isinstance(value, str):
            break
        known = said.setdefault(column if name == column else _column(name), text)
        if known != text:
            raise UsageError(f"the manifest {uri}: row {number} says {known!r} and {text!r} in two columns {name!r}")
    source = said.pop(column, "").strip()
    if not source:
        raise UsageError(f"the manifest {uri}: row {number} has no source in column {column!r}")
    return source, said


def _column(name: str) -> str:
    """What the catalog calls a column: a licence is a licence however it is spelt."""
    return "licence" if name.strip().lower() in LICENCE_COLUMNS else name


def _text(value: object) -> str | None:
    """A cell as text; None where there is no value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool | list | dict):
        return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    return str(value)
