"""So that a list of sources in any common file format is one stream of rows, whatever its length."""

from __future__ import annotations

import csv
import gzip
import tempfile
import zlib
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UsageError
from pipeline.sources.json_manifests import json_line_rows, json_rows
from pipeline.sources.manifest_rows import Row, checked_row, source_column
from pipeline.storage.object_store import AnswerError, filesystem, retried

BATCH_ROWS = 1024


def is_manifest(uri: str) -> bool:
    """Whether the file's suffix, before a `.gz` if there is one, says that it lists sources."""
    return _suffix(uri)[0] in _READERS


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
        except (FileNotFoundError, PermissionError, AnswerError, ValueError) as error:
            raise UsageError(f"the manifest {uri} cannot be read: {_why(error)}") from error
        yield from _local_rows(uri, copy)


def _local_rows(uri: str, file: Path) -> Iterator[Row]:
    suffix, compressed = _suffix(uri)
    try:
        if suffix != ".parquet":
            with gzip.open(file) if compressed else file.open("rb") as stream:
                yield from _READERS[suffix](uri, stream)
        elif compressed:
            raise UsageError(f"the manifest {uri} cannot be read: Parquet compresses by itself; unpack the file first")
        else:
            yield from _parquet_rows(uri, file)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise UsageError(f"the manifest {uri} cannot be read: {_why(error)}") from error


def _suffix(uri: str) -> tuple[str, bool]:
    path = PurePosixPath(urlsplit(uri).path if uri.startswith(("http://", "https://")) else uri)
    compressed = path.suffix.lower() == ".gz"
    return (path.with_suffix("") if compressed else path).suffix.lower(), compressed


def _text_rows(uri: str, file: BinaryIO) -> Iterator[Row]:
    for line in _lines(file):
        text = line.strip()
        if text and not text.startswith("#"):
            yield text, {}


def _csv_rows(uri: str, file: BinaryIO) -> Iterator[Row]:
    yield from _table_rows(uri, csv.reader(_lines(file, newline="")))


def _tsv_rows(uri: str, file: BinaryIO) -> Iterator[Row]:
    yield from _table_rows(uri, csv.reader(_lines(file, newline=""), dialect="excel-tab"))


def _table_rows(uri: str, table: Iterator[list[str]]) -> Iterator[Row]:
    header = next(table, [])
    column = source_column(uri, header)
    for number, row in enumerate(filter(None, table), 1):
        if len(row) > len(header):
            raise UsageError(f"the manifest {uri}: row {number} has more cells than the header has names")
        # CSV cannot tell an empty text from none.
        yield checked_row(uri, number, column, zip(header, (cell or None for cell in row), strict=False))


def _lines(file: BinaryIO, newline: str | None = None) -> TextIOWrapper:
    return TextIOWrapper(file, encoding="utf-8-sig", newline=newline)


def _parquet_rows(uri: str, file: Path) -> Iterator[Row]:
    with pq.ParquetFile(file) as table:
        column = source_column(uri, table.schema_arrow.names)
        number = 0
        for batch in table.iter_batches(batch_size=BATCH_ROWS):
            for row in zip(*(values.to_pylist() for values in batch.columns), strict=True):
                number += 1
                yield checked_row(uri, number, column, zip(batch.schema.names, row, strict=True))


_READERS: dict[str, Callable[[str, Any], Iterator[Row]]] = {
    ".txt": _text_rows,
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
    ".json": json_rows,
    ".jsonl": json_line_rows,
    ".ndjson": json_line_rows,
    ".parquet": _parquet_rows,
}
# For sentences.
SUFFIXES = ".txt, .csv, .tsv, .json, .jsonl or .parquet"


def _why(error: BaseException) -> str:
    return "it is not UTF-8; save it as such" if isinstance(error, UnicodeDecodeError) else str(error)
