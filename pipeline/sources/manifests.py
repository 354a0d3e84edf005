"""Reads lists of sources in any common file format as a stream of rows, whatever their length.

The standard library and pyarrow parse. DuckDB's readers would replace only these calls: what is written here decides
which shapes are a list of sources, keeps cells as the text that they are, and names the row of each error.
"""

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
from pipeline.sources.json_manifests import read_json, read_json_lines
from pipeline.sources.manifest_rows import Row, check_row, require_source_column
from pipeline.storage.object_store import AnswerError, filesystem, retry

BATCH_ROWS = 1024


def is_manifest(uri: str) -> bool:
    """Whether the file's suffix, before a `.gz` if there is one, says that it lists sources."""
    return _split_suffix(uri)[0] in _READERS


def read_rows(uri: str) -> Iterator[Row]:
    """The rows of a manifest, local or remote, read lazily.

    Raises UsageError, naming the manifest and the row, when it cannot be read or has no source column.
    """
    if "://" not in uri:
        yield from _read_local_rows(uri, Path(uri))
        return
    # A complete copy, because a stream that breaks in the middle cannot be resumed.
    with tempfile.TemporaryDirectory(prefix="vdot-manifest-") as folder:
        fs, path = filesystem(uri)
        copy = Path(folder) / "manifest"
        try:
            retry(f"reading {uri}", lambda: fs.get_file(path, str(copy)))
        except (FileNotFoundError, PermissionError, AnswerError, ValueError) as error:
            raise UsageError(f"the manifest {uri} cannot be read: {_describe_error(error)}") from error
        yield from _read_local_rows(uri, copy)


def _read_local_rows(uri: str, file: Path) -> Iterator[Row]:
    suffix, compressed = _split_suffix(uri)
    try:
        if suffix != ".parquet":
            with gzip.open(file) if compressed else file.open("rb") as stream:
                yield from _READERS[suffix](uri, stream)
        elif compressed:
            raise UsageError(f"the manifest {uri} cannot be read: Parquet compresses by itself; unpack the file first")
        else:
            yield from _read_parquet(uri, file)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise UsageError(f"the manifest {uri} cannot be read: {_describe_error(error)}") from error


def _split_suffix(uri: str) -> tuple[str, bool]:
    path = PurePosixPath(urlsplit(uri).path if uri.startswith(("http://", "https://")) else uri)
    compressed = path.suffix.lower() == ".gz"
    return (path.with_suffix("") if compressed else path).suffix.lower(), compressed


def _read_text_rows(uri: str, file: BinaryIO) -> Iterator[Row]:
    for line in _open_text(file):
        text = line.strip()
        if text and not text.startswith("#"):
            yield text, {}


def _read_csv(uri: str, file: BinaryIO) -> Iterator[Row]:
    yield from _parse_table(uri, csv.reader(_open_text(file, newline="")))


def _read_tsv(uri: str, file: BinaryIO) -> Iterator[Row]:
    yield from _parse_table(uri, csv.reader(_open_text(file, newline=""), dialect="excel-tab"))


def _parse_table(uri: str, table: Iterator[list[str]]) -> Iterator[Row]:
    header = next(table, [])
    column = require_source_column(uri, header)
    for number, row in enumerate(filter(None, table), 1):
        if len(row) > len(header):
            raise UsageError(f"the manifest {uri}: row {number} has more cells than the header has names")
        # CSV cannot distinguish an empty text from no value.
        yield check_row(uri, number, column, zip(header, (cell or None for cell in row), strict=False))


def _open_text(file: BinaryIO, newline: str | None = None) -> TextIOWrapper:
    return TextIOWrapper(file, encoding="utf-8-sig", newline=newline)


def _read_parquet(uri: str, file: Path) -> Iterator[Row]:
    with pq.ParquetFile(file) as table:
        column = require_source_column(uri, table.schema_arrow.names)
        number = 0
        for batch in table.iter_batches(batch_size=BATCH_ROWS):
            for row in zip(*(values.to_pylist() for values in batch.columns), strict=True):
                number += 1
                yield check_row(uri, number, column, zip(batch.schema.names, row, strict=True))


_READERS: dict[str, Callable[[str, Any], Iterator[Row]]] = {
    ".txt": _read_text_rows,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".json": read_json,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".parquet": _read_parquet,
}
# For messages.
SUFFIXES = ".txt, .csv, .tsv, .json, .jsonl or .parquet"


def _describe_error(error: BaseException) -> str:
    return "it is not UTF-8; save it as UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
