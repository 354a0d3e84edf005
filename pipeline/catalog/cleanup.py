"""Deletes what killed runs left behind: shards that no catalog part names, and unfinished files.

This is safe without a grace period. A run sweeps only files older than its own newest commit, by the storage's clock:
an older run can never commit again (its sequence number is taken), and a newer run writes after that commit.

`report`, and a probe of whether OUT can be written to, write without the lock and without a commit: one file in OUT
itself. A sweep, and `forget`, may delete that file while it is unfinished; `storage.atomic.write_file` writes it again.
"""

from __future__ import annotations

import re

from pipeline.catalog.catalog import PARTS, Catalog
from pipeline.errors import RunError
from pipeline.formats import embeddings

# Names given by `shards.ShardWriter`; nothing else may be deleted.
_SHARD = re.compile(r"[0-9a-f]{12}-[0-9a-f]{32}\.tar")
FOLDERS = ("shards", "pending", "layers", "previews")


def check_complete(catalog: Catalog) -> None:
    """Raises `RunError` if parts of the catalog are missing: what they named would be taken for leftovers."""
    missing = sorted({*range(1, catalog.sequence + 1)} - {*catalog.list_sequences()})
    if missing:
        raise RunError(
            f"the catalog in {catalog.out.url} lacks part {missing[0]:012d}.parquet"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            + "; restore it before anything is written here, or continue in another OUT."
        )
    if catalog.is_empty() and any(
        _SHARD.fullmatch(entry.name) for folder in FOLDERS for entry in catalog.out.list_files(folder)
    ):
        raise RunError(
            f"{catalog.out.url} holds shards but no catalog; restore its folder {PARTS}/ first, or choose another OUT."
        )


def find_unreferenced(catalog: Catalog) -> list[tuple[str, float]]:
    """(name relative to OUT, time of last change) of every shard that the catalog does not name."""
    con = catalog.connect()
    rows = con.execute("SELECT DISTINCT shard FROM clips UNION SELECT DISTINCT preview_shard FROM clips").fetchall()
    referenced = {row[0] for row in rows}
    return [
        (f"{folder}/{entry.name}", entry.modified)
        for folder in FOLDERS
        for entry in catalog.out.list_files(folder)
        if _SHARD.fullmatch(entry.name) and f"{folder}/{entry.name}" not in referenced
    ]


def find_unfinished(catalog: Catalog) -> list[tuple[str, float]]:
    """As `find_unreferenced`, for the temporary files of local writers that are at work or were killed."""
    return [
        (f"{folder}/{entry.name}".lstrip("/"), entry.modified)
        for folder in ("", PARTS, embeddings.FOLDER, *FOLDERS)
        for entry in catalog.out.list_files(folder, temporary=True)
    ]


def sweep(catalog: Catalog) -> list[str]:
    """Delete files that are unreferenced or unfinished, and older than the newest commit, which must be the caller's.

    Returns their names.
    """
    committed_at = catalog.committed_at()
    leftovers = [
        name for name, modified in find_unreferenced(catalog) + find_unfinished(catalog) if modified < committed_at
    ]
    for name in leftovers:
        catalog.out.delete(name)
    return leftovers
