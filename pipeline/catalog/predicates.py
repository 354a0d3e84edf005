"""SQL over the catalog and its views, each written once: predicates over rows, and whole queries (`_QUERY`).

`table` is the alias of the rows that are meant, with its dot ("c."), where a query has several.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.formats.records import LineageEntry
from pipeline.formats.schema import BASE_LAYER, Kind, Status
from pipeline.recipe.rules import quote_text


def kind_sql(kind: Kind, table: str = "") -> str:
    """SQL that is true for rows of this kind."""
    return f"{table}kind = '{kind}'"


def status_sql(*statuses: Status, table: str = "") -> str:
    """SQL that is true for rows with one of these statuses."""
    return f"{table}status IN ({', '.join(quote_text(status) for status in statuses)})"


def layer_sql(layer: str, table: str = "") -> str:
    """SQL that is true for rows of this layer."""
    return f"{table}layer = {quote_text(layer)}"


IS_BASE = layer_sql(BASE_LAYER)
BASE_FIRST = f"NOT ({IS_BASE})"
"""To sort the rows of a clip by: its own row comes before those of added layers."""
LAYER_ORDER = f"{BASE_FIRST}, layer"
"""To sort the rows of a clip by: its own, then those of added layers by name."""

IS_KEPT = status_sql(Status.KEPT)
IS_REJECTED = status_sql(Status.REJECTED)
IS_FAILED = status_sql(Status.FAILED)
IS_JUDGED = status_sql(Status.KEPT, Status.REJECTED, Status.PENDING)
"""Rules have judged it, and judge it again when they change."""

HAS_SAMPLE = f"{status_sql(Status.KEPT, Status.PENDING)} AND shard IS NOT NULL"
"""A row's sample is stored: a rejected clip has none, and a failed one may have an outdated one."""
IS_STORED_CLIP = f"{IS_BASE} AND {HAS_SAMPLE}"
"""A clip's own row, with a stored sample: what a layer is added to, and what is embedded and compared."""
HAS_KEPT_SAMPLE = f"{IS_KEPT} AND shard IS NOT NULL"
"""A row of a clip or of a layer whose sample trainers may read."""

FORGOTTEN_CLIPS_QUERY = "SELECT clip_id FROM forgotten WHERE clip_id IS NOT NULL"
SOURCE_IS_FORGOTTEN = (
    "EXISTS (SELECT 1 FROM forgotten f WHERE f.clip_id IS NULL AND f.source_uri = p.source_uri "
    "AND f.source_hash IS NOT DISTINCT FROM p.source_hash AND f.sequence >= p.sequence)"
)
"""True for a source's row `p` that is forgotten: rows up to the part that records it are, later ones are not."""

STORED_RECIPE_QUERY = f"SELECT recipe FROM runs WHERE {IS_BASE} ORDER BY sequence DESC LIMIT 1"
"""The recipe of the newest ingest."""


CLIP_ROWS_QUERY = f"SELECT * FROM clips WHERE clip_id = ? ORDER BY {LAYER_ORDER}"
"""The rows of a clip, in the order of its layers."""


def newest_sql(*key: str) -> str:
    """SQL (a QUALIFY) that leaves the newest of the rows with the same key."""
    return f"QUALIFY row_number() OVER (PARTITION BY {', '.join(key)} ORDER BY sequence DESC) = 1"


def made_by_sql(lineage: Iterable[LineageEntry], any_version: bool = False) -> str:
    """SQL that is true for a row of the catalog that was made by all of these, in these versions or in any."""
    if any_version:
        expected = ", ".join(quote_text(entry["name"]) for entry in lineage)
        stored = "list_transform(lineage, lambda e: e.name)"
    else:
        expected = ", ".join(
            quote_text(f"{entry['name']} {entry['version']} {entry['weights_sha256']}") for entry in lineage
        )
        stored = (
            "list_transform(lineage, lambda e: concat_ws(' ', e.name, e.version, coalesce(e.weights_sha256, 'None')))"
        )
    return f"coalesce(list_has_all({stored}, [{expected}]::VARCHAR[]), false)"


def is_fully_annotated_sql(lineage: Iterable[LineageEntry]) -> str:
    """SQL that is true for a row with a sample that was made by all of these, in any version."""
    return f"shard IS NOT NULL AND {made_by_sql(lineage, any_version=True)}"
