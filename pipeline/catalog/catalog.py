"""The catalog: Parquet parts that one committer appends and nobody changes, and the views that read them.

Parts are numbered, and number n is created only if no other run has created it. A run first commits a row of its own;
from then on an older run that is still alive can no longer commit.
"""

from __future__ import annotations

import os
import re
import secrets
import uuid
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.catalog.predicates import FORGOTTEN_CLIPS_QUERY, SOURCE_IS_FORGOTTEN, kind_sql, newest_sql
from pipeline.errors import RunError, UsageError
from pipeline.formats.schema import COLUMNS, FORMAT_VERSION, Kind
from pipeline.recipe.rules import first_line, quote_text
from pipeline.storage.folder import Folder, parquet

PARTS = "catalog"
# Memory that DuckDB may use for a catalog, plus that for each row: its indexes of keys cannot spill.
_MEMORY, _ROW_MEMORY = 128 << 20, 1 << 10
# Rows that are in memory at once when a whole catalog is streamed.
BATCH = 10_000
# Other files in the folder are not ours, and not read.
_PART = re.compile(r"\d{12}\.parquet")

# Latest row per clip and layer, and per source; a part never holds two rows of the same one. A forgotten clip never
# counts again; of a forgotten source, rows up to the part that records it do not (the file may have changed since).
_VIEWS = f"""
CREATE OR REPLACE VIEW runs AS SELECT * FROM parts WHERE {kind_sql(Kind.RUN)};
CREATE OR REPLACE VIEW forgotten AS SELECT * FROM parts WHERE {kind_sql(Kind.FORGOTTEN)};
CREATE OR REPLACE VIEW clips AS SELECT * FROM parts WHERE {kind_sql(Kind.CLIP)}
  AND clip_id NOT IN ({FORGOTTEN_CLIPS_QUERY}) {newest_sql("clip_id", "layer")};
CREATE OR REPLACE VIEW sources AS SELECT * FROM parts p WHERE {kind_sql(Kind.SOURCE)}
  AND NOT {SOURCE_IS_FORGOTTEN} {newest_sql("source_uri")};
"""


def new_run_id() -> str:
    """A new id for a run, or for anything else that writes shards: 12 hex digits."""
    return uuid.uuid4().hex[:12]


def utc_now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def open_dataset(out: str) -> Folder:
    """The folder of a dataset. Raises `UsageError` if there is none."""
    folder = Folder(out)
    if not any(_PART.fullmatch(entry.name) for entry in folder.list_files(PARTS)):
        raise UsageError(f"{out} is not a dataset: it has no catalog. `vdot-data ingest` makes one.")
    return folder


def _max_memory() -> int:
    """DuckDB's own default: four fifths of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 4 // 5


def check_no_dataset(folder: Folder) -> None:
    """Raises `UsageError` if the folder is a dataset, into which nothing else may be written."""
    if folder.list_files(PARTS):
        raise UsageError(f"{folder.url} is a dataset, which belongs to `ingest` alone: choose another folder")


class Catalog:
    """The catalog of one OUT, read through DuckDB and appended to by its one committer."""

    def __init__(self, out: Folder, scratch: Path) -> None:
        """Parts of a remote OUT are copied to `scratch`; those on a disk are read where they are."""
        self.out = out
        self._mirror = out.local / PARTS if out.local else scratch / PARTS
        self._copy = out.local is None
        self._copied: set[str] = set()
        # For each part, its columns and its number of rows.
        self._parts: dict[str, tuple[pa.Schema, int]] = {}
        self._spill = scratch
        self.sequence = max(self.list_sequences(), default=0)

    def _list_parts(self) -> list[str]:
        return sorted(entry.name for entry in self.out.list_files(PARTS) if _PART.fullmatch(entry.name))

    def list_sequences(self) -> list[int]:
        """The numbers of the existing parts."""
        return [int(name.removesuffix(".parquet")) for name in self._list_parts()]

    def is_empty(self) -> bool:
        """Whether nothing was ever committed."""
        return self.sequence == 0

    def connect(self, columns: pa.Schema = COLUMNS, upto: int | None = None) -> duckdb.DuckDBPyConnection:
        """A DuckDB connection with the views `parts`, `clips`, `sources`, `runs`, `forgotten` of what is committed now,
        or was when part `upto` was the newest.

        Every view has all of `columns`, null where the parts lack them. Raises `RunError` if a part cannot be read,
        `UsageError` if a column has another type there.
        """
        names = [name for name in self._list_parts() if upto is None or name <= _part_name(upto)]
        if self._copy:
            self._mirror.mkdir(parents=True, exist_ok=True)
            for name in names:
                if name not in self._copied:
                    self.out.download(f"{PARTS}/{name}", self._mirror / name)
                    self._copied.add(name)
        # Each connection has its own folder, as two that spill into the same one would clash.
        spill = self._spill / f"duckdb-{secrets.token_hex(8)}"
        con = duckdb.connect(config={"temp_directory": str(spill)})
        con.execute("SET preserve_insertion_order = false")
        con.register("given", columns.empty_table())
        # A table, because a registered object is visible only to this connection and not to its cursors.
        con.execute("CREATE TABLE columns AS SELECT * FROM given")
        try:
            parts = [
                "SELECT * FROM columns",
                *(f"SELECT * FROM read_parquet([{files}])" for files in self._group_by_schema(names)),
            ]
            con.execute(f"CREATE VIEW parts AS {' UNION ALL BY NAME '.join(parts)}")
            con.execute(_VIEWS)
            rows = sum(self._parts[name][1] for name in names)
            # Otherwise DuckDB takes all memory of the machine, and keeps it; with a limit it spills the rest.
            con.execute(f"SET memory_limit = '{min(_MEMORY + rows * _ROW_MEMORY, _max_memory()) >> 20}MiB'")
            mismatch = con.execute(
                "SELECT c.column_name, p.column_type FROM (DESCRIBE columns) c JOIN (DESCRIBE parts) p "
                "USING (column_name) WHERE c.column_type <> p.column_type"
            ).fetchone()
        except (duckdb.Error, pa.ArrowException) as error:
            raise RunError(
                f"the catalog in {self.out.url} cannot be read: {first_line(error)} "
                "(`vdot-data verify` says which part is damaged)"
            ) from error
        if mismatch:
            raise UsageError(
                f"{self.out.url} has a column {mismatch[0]!r} of another kind ({mismatch[1]}), from a manifest or "
                "another annotator: rename the new one, or choose another OUT"
            )
        return con

    def _group_by_schema(self, names: Iterable[str]) -> Iterator[str]:
        """The files of the parts, quoted, in groups with the same columns: DuckDB reads such a group file by file, but
        keeps all readers of a union by name, which cost the driver 2 MB a part, measured."""
        groups: dict[pa.Schema, list[str]] = {}
        for name in names:
            if name not in self._parts:
                footer = pq.read_metadata(self._mirror / name)
                schema = footer.schema.to_arrow_schema().remove_metadata()
                # One object for all equal schemas, of which there may be thousands.
                self._parts[name] = next((equal for equal in groups if equal == schema), schema), footer.num_rows
            groups.setdefault(self._parts[name][0], []).append(quote_text(str(self._mirror / name)))
        return (", ".join(files) for files in groups.values())

    def commit(self, rows: pa.Table) -> int:
        """Append one part with these rows and return its sequence number, which the rows get too.

        Raises `RunError` if another run has appended meanwhile: it owns OUT now, and nothing was written.
        """
        sequence = self.sequence + 1
        for name, value in (("format_version", FORMAT_VERSION), ("sequence", sequence)):
            stamp = pa.array([value] * rows.num_rows, pa.int64())
            rows = rows.set_column(rows.schema.get_field_index(name), name, stamp)
        if not self.out.create(f"{PARTS}/{_part_name(sequence)}", parquet(rows)):
            raise RunError(
                f"another run has taken over {self.out.url} (part {sequence} of its catalog is not ours). "
                "This one stops; what it had committed is kept."
            )
        self.sequence = sequence
        return sequence

    def read_part(self, sequence: int) -> pa.Table:
        """The rows of one part. Raises `RunError` if it cannot be read."""
        try:
            return pq.read_table(pa.BufferReader(self.out.read(f"{PARTS}/{_part_name(sequence)}")))
        except pa.ArrowException as error:
            raise RunError(f"part {sequence} of the catalog in {self.out.url} cannot be read: {error}") from error

    def rewrite(self, sequence: int, rows: pa.Table) -> None:
        """Replace an existing part, whole or not at all. Only for `forget`: history never changes otherwise."""
        self.out.put(f"{PARTS}/{_part_name(sequence)}", parquet(rows))
        self._copied.discard(_part_name(sequence))
        self._parts.pop(_part_name(sequence), None)

    def committed_at(self) -> float:
        """When the newest part was written, by the clock of the storage (seconds since 1970)."""
        name = _part_name(self.sequence)
        return next(entry.modified for entry in self.out.list_files(PARTS) if entry.name == name)


def _part_name(sequence: int) -> str:
    return f"{sequence:012d}.parquet"


def values(con: duckdb.DuckDBPyConnection, sql: str, parameters: Iterable[Any] = ()) -> list[dict[str, Any]]:
    """The rows of a query as dictionaries."""
    cursor = con.execute(sql, list(parameters))
    assert cursor.description is not None
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
