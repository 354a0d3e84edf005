"""The table OUT/embeddings/*.parquet: a vector for each clip, in parts that any reader of Parquet reads as they are.

A part is written once and never changed, except by `forget`. All of it can be made anew from the clips, so a part that
is damaged may be deleted. A clip may be there more than once (a worker was retried, a killed run still lived): any of
its vectors will do, and the one in the part that comes first by name is taken.
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


def names(out: Folder) -> list[str]:
    """The parts that are there, sorted."""
    return [entry.name for entry in out.names(FOLDER) if _PART.fullmatch(entry.name)]


def append(out: Folder, run_id: str, number: int, model: str, rows: pa.Table) -> None:
    """Write one part: the vectors (clip_id, embedding) of some clips, by one version of the model."""
    table = pa.table([rows["clip_id"], pa.array([model] * rows.num_rows), rows["embedding"]], names=_COLUMNS)
    name = f"{FOLDER}/{run_id}-{number:06d}.parquet"
    if not out.create(name, parquet(table, write_page_checksum=True)):
        raise RunError(f"{out.url}/{name} is there already, and is not of this run")


def ids(out: Folder, model: str) -> Iterator[pa.ChunkedArray]:
    """The ids of the clips that have a vector by this version of the model, part by part."""
    for name in names(out):
        yield _by(_read(out, name, ["clip_id", "model"]), model)["clip_id"]


def load(out: Folder, model: str, wanted: pa.ChunkedArray, size: int, file: Path) -> Vectors:
    """The vectors (of `size` numbers) of the clips `wanted`, sorted ids that are all there, in a file mapped to memory.

    Raises `RunError` when a part cannot be read, and when there is no room for the file.
    """
    keys = _keys(wanted)
    if not len(keys):
        return np.empty((0, size), np.float16)
    room = len(keys) * size * np.dtype(np.float16).itemsize
    try:
        # Before it is mapped: a page that finds no room then is a bus error.
        with file.open("wb") as empty:
            os.posix_fallocate(empty.fileno(), 0, room)
    except OSError as error:
        raise RunError(
            f"comparing {len(keys)} clips needs {room / 1e9:.1f} GB in {file.parent}: {error.strerror}; "
            "VDOT_SCRATCH names another place"
        ) from error
    vectors: Vectors = np.memmap(file, np.float16, "r+", shape=(len(keys), size))
    filled = np.zeros(len(keys), bool)
    # Backwards, so that the first part has the last word.
    for name in reversed(names(out)):
        table = _by(_read(out, name, [*_COLUMNS]), model)
        given = _keys(table["clip_id"])
        places = np.searchsorted(keys, given).clip(max=len(keys) - 1)
        known = keys[places] == given
        rows = table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, size)
        vectors[places[known]] = rows[known]
        filled[places[known]] = True
    if not filled.all():
        raise RunError(f"{out.url}/{FOLDER} lacks the vectors of {(~filled).sum()} clips that it had just now")
    return vectors


def forget(out: Folder, gone: Iterable[str]) -> None:
    """Remove the vectors of these clips for good. A part that cannot be read goes as a whole: it may hold some."""
    banned = pa.array(sorted(gone), pa.string())
    for name in names(out) if len(banned) else ():
        try:
            table = _read(out, name, [*_COLUMNS])
        except RunError:
            out.delete(f"{FOLDER}/{name}")
            continue
        found = pc.is_in(table["clip_id"], banned)
        if pc.all(found).as_py():
            out.delete(f"{FOLDER}/{name}")
        elif pc.any(found).as_py():
            out.put(f"{FOLDER}/{name}", parquet(table.filter(pc.invert(found)), write_page_checksum=True))


def problems(out: Folder, forgotten: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(part, what is wrong with it) for `verify`."""
    banned = pa.array(sorted(forgotten), pa.string())
    for name in names(out):
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
        why = str(error).splitlines()[0]
        raise RunError(
            f"{out.url}/{FOLDER}/{name} is damaged ({why}); delete it, and `vdot-data dedup` makes its vectors anew"
        ) from error
    return table


def _by(table: pa.Table, model: str) -> pa.Table:
    return table.filter(pc.equal(table["model"], model))


def _keys(clips: pa.ChunkedArray) -> NDArray[np.bytes_]:
    """Ids as fixed-size strings, which numpy can search in."""
    plain = clips.cast(pa.binary()).cast(pa.binary(32)).combine_chunks()
    return np.frombuffer(plain.buffers()[1], "S32")[plain.offset : plain.offset + len(plain)]
