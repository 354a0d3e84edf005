"""Delete what killed runs left behind: shards that no catalog part names, and files that were never finished.

Safe without a grace period. A run sweeps only files older than its own newest commit, by the storage's clock: an
older run can never commit again (its sequence number is taken), and a newer run writes after that commit.
"""

from __future__ import annotations

from pipeline.catalog import PARTS, Catalog

FOLDERS = ("shards", "pending", "layers", "previews")


def unreferenced(catalog: Catalog) -> list[tuple[str, float]]:
    """(name relative to OUT, time of last change) of every stored file that the catalog does not name."""
    con = catalog.connect()
    rows = con.execute("SELECT DISTINCT shard FROM clips UNION SELECT DISTINCT preview_shard FROM clips").fetchall()
    named = {row[0] for row in rows}
    return [
        (f"{folder}/{entry.name}", entry.modified)
        for folder in FOLDERS
        for entry in catalog.out.names(folder)
        if f"{folder}/{entry.name}" not in named
    ]


def unfinished(catalog: Catalog) -> list[tuple[str, float]]:
    """As `unreferenced`, of the temporary files that local writers are at work on, or left when they were killed."""
    return [
        (f"{folder}/{entry.name}".lstrip("/"), entry.modified)
        for folder in ("", PARTS, *FOLDERS)
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
