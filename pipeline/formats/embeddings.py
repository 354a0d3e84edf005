"""The table OUT/embeddings/*.parquet: a vector for each clip, in parts that are plain Parquet files.

A part is written once and never changed, except by `forget`. All of it can be recomputed from the clips, so a damaged
part may be deleted. A clip may be in it more than once (a worker was retried, a killed run was still alive): any of its
vectors will do, and the one in the part that is first by name is used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import RunError
from pipeline.storage.folder import Folder, parquet

Vectors = NDArray[np.float16]
"""float16 [N, D]: unit vectors, up to rounding."""

FOLDER = "embeddings"
_COLUMNS = ("clip_id", "model", "embedding")
# Other files in the folder are not ours, and not read.
_PART = re.compile(r"[0-9a-f]{12}-\d{6}\.parquet")


def list_parts(out: Folder) -> list[str]:
    """The names of the stored parts, sorted."""
    return [entry.name for entry in out.list_files(FOLDER) if _PART.fullmatch(entry.name)]


def append_part(out: Folder, run_id: str, number: int, model: str, rows: pa.Table) -> None:
    """Write one part: the vectors (clip_id, embedding) of some clips, from one version of the model."""
    table = pa.table([rows["clip_id"], pa.array([model] * rows.num_rows), rows["embedding"]], names=_COLUMNS)
    name = f"{FOLDER}/{run_id}-{number:06d}.parquet"
    if not out.create(name, parquet(table, write_page_checksum=True)):
        raise RunError(f"{out.url}/{name} exists already, and is not from this run")


def read_ids(out: Folder, model: str) -> Iterator[pa.ChunkedArray]:
    """The ids of the clips that have a vector from this version of the model, part by part."""
    for name in list_parts(out):
        yield _select_model(_read(out, name, ["clip_id", "model"]), model)["clip_id"]


def load(out: Folder, model: str, clips: pa.ChunkedArray, dimensions: int, file: Path) -> Vectors:
    """The vectors (of `dimensions` numbers) of `clips`, sorted ids that are all stored, in a file mapped to memory.

    Raises `RunError` when a part cannot be read, and when there is no room for the file.
    """
    keys = _to_keys(clips)
    if not len(keys):
        return np.empty((0, dimensions), np.float16)
    size_bytes = len(keys) * dimensions * np.dtype(np.float16).itemsize
    try:
        # Before it is mapped: running out of space later would be a bus error.
        with file.open("wb") as reserved:
            os.posix_fallocate(reserved.fileno(), 0, size_bytes)
    except OSError as error:
        raise RunError(
            f"comparing {len(keys)} clips needs {size_bytes / 1e9:.1f} GB in {file.parent}: {error.strerror}; "
            "VDOT_SCRATCH names another place"
        ) from error
    vectors: Vectors = np.memmap(file, np.float16, "r+", shape=(len(keys), dimensions))
    filled = np.zeros(len(keys), bool)
    # Backwards, so that the first part wins.
    for name in reversed(list_parts(out)):
        table = _select_model(_read(out, name, [*_COLUMNS]), model)
        stored = _to_keys(table["clip_id"])
        positions = np.searchsorted(keys, stored).clip(max=len(keys) - 1)
        matches = keys[positions] == stored
        rows = table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, dimensions)
        vectors[positions[matches]] = rows[matches]
        filled[positions[matches]] = True
    if not filled.all():
        raise RunError(f"{out.url}/{FOLDER} lacks the vectors of {(~filled).sum()} clips that it had a moment ago")
    return vectors


def forget(out: Folder, forgotten: Iterable[str]) -> None:
    """Remove the vectors of these clips for good. A part that cannot be read is deleted: it may hold some."""
    banned = pa.array(sorted(forgotten), pa.string())
    for name in list_parts(out) if len(banned) else ():
        try:
            table = _read(out, name, [*_COLUMNS])
        except RunError:
            out.delete(f"{FOLDER}/{name}")
            continue
        is_forgotten = pc.is_in(table["clip_id"], banned)
        if pc.all(is_forgotten).as_py():
            out.delete(f"{FOLDER}/{name}")
        elif pc.any(is_forgotten).as_py():
            out.put(f"{FOLDER}/{name}", parquet(table.filter(pc.invert(is_forgotten)), write_page_checksum=True))


def find_problems(out: Folder, forgotten: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(part, what is wrong with it), for `verify`."""
    banned = pa.array(sorted(forgotten), pa.string())
    for name in list_parts(out):
        try:
            table = _read(out, name, [*_COLUMNS])
        except RunError as error:
            yield name, str(error)
            continue
        if pc.any(pc.is_in(table["clip_id"], banned)).as_py():
            yield name, "holds vectors of clips that were forgotten; `vdot-data dedup` removes them"


def _read(out: Folder, name: str, columns: list[str]) -> pa.Table:
    data = out.read(f"{FOLDER}/{name}")
    try:
        table = pq.read_table(pa.BufferReader(data), columns=columns, page_checksum_verification=True)
        if table.column_names != columns:
            raise pa.ArrowInvalid(f"it has the columns {table.column_names}")
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(
            f"{out.url}/{FOLDER}/{name} is damaged ({reason}); delete it, and `vdot-data dedup` computes it again"
        ) from error
    return table


def _select_model(table: pa.Table, model: str) -> pa.Table:
    return table.filter(pc.equal(table["model"], model))


def _to_keys(clips: pa.ChunkedArray) -> NDArray[np.bytes_]:
    """Ids as fixed-size strings, which numpy can search."""
    ids = clips.cast(pa.binary()).cast(pa.binary(32)).combine_chunks()
    return np.frombuffer(ids.buffers()[1], "S32")[ids.offset : ids.offset + len(ids)]
