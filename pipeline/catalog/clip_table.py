"""The catalog as users query it: one row per clip, with columns from every layer.

A predicate may name any column of the catalog, any signal of any layer, any column of a manifest, and the columns
derived here: `layers` (the layers that a clip has), `made_by` and `weights_licence` (maps from the name of an annotator
or filter to its version and to the licence of its weights: `made_by['pose'] = '3'`), and `duplicate_rank` (the rank of
a clip among its near duplicates that are currently kept: 1 for the best, and for a clip that has none).
"""

from __future__ import annotations

from collections.abc import Iterable

import duckdb

from pipeline.catalog.predicates import IS_BASE, status_sql
from pipeline.errors import UsageError, did_you_mean
from pipeline.formats.schema import COLUMNS, DUPLICATES, Status
from pipeline.recipe.rules import RuleError, first_line, parse_columns, quote_name

# Columns of rows of sources and runs, and columns about the catalog rather than about a clip.
_INTERNAL = {
    "format_version",
    "kind",
    "layer",
    "recipe",
    "version",
    "started",
    "finished",
    "shots",
    "windows",
    "same_as",
}
# Only what was made for a layer: its lineage also lists what it builds on, which the base layer records.
_LAYER_LINEAGE = f"flatten(list(list_filter(lineage, lambda e: e.name = layer)) FILTER (WHERE NOT {IS_BASE}))"
_BASE_LINEAGE = f"flatten(list(lineage) FILTER (WHERE {IS_BASE}))"


def _map_sql(value: str) -> str:
    """SQL for a map of names to a field of their lineage. An annotator that made a layer may have joined the recipe
    since: then the base layer's entry counts."""
    maps = (
        f"map_from_entries(list_transform(coalesce({entries}, []), lambda e: (e.name, e.{value})))"
        for entries in (_LAYER_LINEAGE, _BASE_LINEAGE)
    )
    return f"map_concat({', '.join(maps)})"


_IS_ADDED = f"NOT {IS_BASE} AND {status_sql(Status.KEPT, Status.COMPARED)}"
_DERIVED = {
    "layers": f"list(layer ORDER BY layer) FILTER (WHERE {_IS_ADDED})",
    "made_by": _map_sql("version"),
    "weights_licence": _map_sql("weights_licence"),
}


# The best of a group may no longer be kept: a rule became stricter, or there was a takedown.
_RANK = "duplicate_rank"
_RANKED = (
    "row_number() OVER (PARTITION BY coalesce(vdot_group, clip_id) "
    f"ORDER BY vdot_status <> '{Status.KEPT}', vdot_best IS NOT NULL, vdot_similarity DESC, clip_id)"
)
_FOR_RANK = {
    "vdot_group": "duplicate_group", "vdot_best": "duplicate_of", "vdot_similarity": "duplicate_similarity",
    "vdot_status": "status",
}  # fmt: skip


def list_columns(con: duckdb.DuckDBPyConnection) -> list[str]:
    """The columns that a predicate may name; `con` is a connection of `Catalog.connect`."""
    described = con.execute("SELECT column_name FROM (DESCRIBE clips)").fetchall()
    return [name for (name,) in described if name not in _INTERNAL] + [*_DERIVED, _RANK]


def resolve_columns(predicates: Iterable[str], con: duckdb.DuckDBPyConnection) -> list[str]:
    """The columns that predicates name, as the catalog spells them.

    Raises `UsageError` for anything but a predicate over columns, and for an unknown column, with the nearest name.
    """
    names = {name.lower(): name for name in list_columns(con)}
    resolved: dict[str, None] = {}
    for text in predicates:
        try:
            requested = parse_columns("where", text, con)
        except RuleError as error:
            raise UsageError(str(error)) from error
        for column in requested:
            if column.lower() not in names:
                raise UsageError(f"where: no column named {column!r}{did_you_mean(column, names.values())}")
            resolved[names[column.lower()]] = None
    return list(resolved)


def check_predicates(predicates: Iterable[str], table: str, con: duckdb.DuckDBPyConnection) -> None:
    """Raises `UsageError` for a predicate that cannot be evaluated on `table`, or that is not boolean."""
    for text in predicates:
        try:
            ((kind,),) = con.execute(
                f"SELECT column_type FROM (DESCRIBE SELECT ({text}\n) AS it FROM {table} WHERE ({text}\n))"
            ).fetchall()
        except duckdb.Error as error:
            raise UsageError(f"where: {text!r} cannot be evaluated: {first_line(error)}") from error
        if kind != "BOOLEAN":
            raise UsageError(f"where: {text!r} is {kind.lower()}, and must be true or false, as `luma > 40` is")


def create(con: duckdb.DuckDBPyConnection, table: str, columns: Iterable[str], where: str = "true") -> None:
    """Create `table` with `clip_id` and these columns of every clip with a base row for which `where` is true."""
    names = [name for name in columns if name != "clip_id"]
    values = {name: _value_sql(name) for name in names if name != _RANK}
    if _RANK in names:
        values |= {name: _value_sql(column) for name, column in _FOR_RANK.items()}
    selection = "".join(f", {value} AS {quote_name(name)}" for name, value in values.items())
    projection = f"* EXCLUDE ({', '.join(_FOR_RANK)}), {_RANKED} AS {_RANK}" if _RANK in names else "*"
    con.execute(
        f"CREATE TABLE {table} AS SELECT {projection} FROM (SELECT clip_id{selection} FROM clips GROUP BY clip_id "
        f"HAVING bool_or({IS_BASE} AND ({where})))"
    )


def _value_sql(name: str) -> str:
    """SQL for a column's value among the rows of one clip."""
    if name in _DERIVED:
        return _DERIVED[name]
    column = quote_name(name)
    if name == "caption":
        # Captions added as a layer replace those of the base layer.
        return f"coalesce(arg_max(caption, sequence) FILTER (WHERE NOT {IS_BASE}), any_value(caption))"
    if name in COLUMNS.names and name not in DUPLICATES:
        return f"any_value({column}) FILTER (WHERE {IS_BASE})"
    # A signal belongs to one layer, unless its annotator joined the recipe later: then to the base layer.
    return f"coalesce(any_value({column}) FILTER (WHERE {IS_BASE}), any_value({column}))"
