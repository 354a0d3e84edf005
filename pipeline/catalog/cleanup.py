"""Delete what killed runs left behind: shards that no catalog part names, and files that were never finished.

Safe without a grace period. A run sweeps only files older than its own newest commit, by the storage's clock: an
older run can never commit again (its sequence number is taken), and a newer run writes after that commit.
"""

from __future__ import annotations

import re

from pipeline.catalog.catalog import PARTS, Catalog
from pipeline.errors import RunError
from pipeline.formats import embeddings

# The names that `shards.ShardWriter` gives; nothing else is ours to delete.
_SHARD = re.compile(r"[0-9a-f]{12}-[0-9a-f]{32}\.tar")
FOLDERS = ("shards", "pending", "layers", "previews")


def check_complete(catalog: Catalog) -> None:
    """Raises `RunError` where parts of the catalog are missing: what they named would be taken for leftovers."""
    missing = sorted({*range(1, catalog.sequence + 1)} - {*catalog.sequences()})
    if missing:
        raise RunError(
            f"the catalog in {catalog.out.url} lacks part {missing[0]:012d}.parquet"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            + "; restore it before anything is written here, or go on in another OUT."
        )
    if catalog.empty() and any(_SHARD.fullmatch(e.name) for folder in FOLDERS for e in catalog.out.names(folder)):
        raise RunError(
            f"{catalog.out.url} holds shards but no catalog; restore its folder {PARTS}/ first, or choose another OUT."
        )


def unreferenced(catalog: Catalog) -> list[tuple[str, float]]:
    """(name relative to OUT, time of last change) of every shard that the catalog does not name."""
    con = catalog.connect()
    rows = con.execute("SELECT DISTINCT shard FROM clips UNION SELECT DISTINCT preview_shard FROM clips").fetchall()
    named = {row[0] for row in rows}
    return [
        (f"{folder}/{entry.name}", entry.modified)
        for folder in FOLDERS
        for entry in catalog.out.names(folder)
        if _SHARD.fullmatch(entry.name) and f"{folder}/{entry.name}" not in named
    ]


def unfinished(catalog: Catalog) -> list[tuple[str, float]]:
    """As `unreferenced`, of the temporary files that local writers are at work on, or left when they were killed."""
    return [
        (f"{folder}/{entry.name}".lstrip("/"), entry.modified)
        for folder in ("", PARTS, embeddings.FOLDER, *FOLDERS)
        for entry in catalog.out.names(folder, temporary=True)
    ]


def sweep(catalog: Catalog) -> list[str]:
    """Delete what is unreferenced or unfinished, and older than the newest commit, which must be the caller's own.

    Returns the names of what it deleted.
    """
    before = catalog.committed_at()
    dead = [name for name, modified in unreferenced(catalog) + unfinished(catalog) if modified < before]
    for name in dead:
        catalog.out.delete(name)
    return dead
