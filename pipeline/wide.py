"""The catalog as people query it: one row per clip, wide with what every layer added to it.

A predicate may name any column of the catalog, any signal of any layer, any column of a manifest, and three that are
made here: `layers` (the layers that a clip has), `made_by` and `weights_licence` (from the name of an annotator or
filter to its version and to the licence of its weights: `made_by['pose'] = '3'`).
"""

from __future__ import annotations

from collections.abc import Iterable

import duckdb

from filters.rules import RuleError, columns_of, did_you_mean, named, quoted
from pipeline.errors import UsageError
from pipeline.schema import BASE_LAYER, COLUMNS, COMPARED, DUPLICATES

# What only rows of sources and runs have, and what says how the catalog is kept rather than what a clip is.
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
# Of a layer, what was made for it: its lineage also holds what it builds on, which is the base layer's to tell.
_OWN = "list_filter(lineage, lambda e: e.name = layer)"
_LINEAGE = f"flatten(list(CASE WHEN layer = '{BASE_LAYER}' THEN lineage ELSE {_OWN} END))"
_MADE = {
    "layers": f"list(layer ORDER BY layer) FILTER (WHERE layer <> '{BASE_LAYER}' AND status IN ('kept', '{COMPARED}'))",
    "made_by": f"map_from_entries(list_transform({_LINEAGE}, lambda e: (e.name, e.version)))",
    "weights_licence": f"map_from_entries(list_transform({_LINEAGE}, lambda e: (e.name, e.weights_licence)))",
}


def columns(con: duckdb.DuckDBPyConnection) -> list[str]:
    """What a predicate may name; `con` is a connection of `Catalog.connect`."""
    described = con.execute("SELECT column_name FROM (DESCRIBE clips)").fetchall()
    return [name for (name,) in described if name not in _INTERNAL] + [*_MADE]


def used(predicates: Iterable[tuple[str, str]], con: duckdb.DuckDBPyConnection) -> list[str]:
    """The columns that these (name, predicate) ask for, as the catalog spells them.

    Raises `UsageError` for what is no predicate over columns, and for an unknown column, with the nearest name.
    """
    known = {name.lower(): name for name in columns(con)}
    found: dict[str, None] = {}
    for name, text in predicates:
        try:
            asked = columns_of(name, text, con)
        except RuleError as error:
            raise UsageError(str(error)) from error
        for column in asked:
            if column.lower() not in known:
                raise UsageError(f"{name}: no column named {column!r}{did_you_mean(column, known.values())}")
            found[known[column.lower()]] = None
    return list(found)


def make(con: duckdb.DuckDBPyConnection, table: str, wanted: Iterable[str], where: str = "true") -> None:
    """Make `table` with `clip_id` and the `wanted` columns of every clip for whose base row `where` is true."""
    chosen = "".join(f", {_value(name)} AS {named(name)}" for name in wanted if name != "clip_id")
    con.execute(
        f"CREATE TABLE {table} AS SELECT clip_id{chosen} FROM clips GROUP BY clip_id "
        f"HAVING bool_or(layer = {quoted(BASE_LAYER)} AND ({where}))"
    )


def _value(name: str) -> str:
    """SQL for a column's value among the rows of one clip."""
    if name in _MADE:
        return _MADE[name]
    column, base = named(name), f"layer = {quoted(BASE_LAYER)}"
    if name == "caption":
        # Whoever adds captions as a layer wants them instead.
        return f"coalesce(arg_max(caption, sequence) FILTER (WHERE NOT {base}), any_value(caption))"
    if name in COLUMNS.names and name not in DUPLICATES:
        return f"any_value({column}) FILTER (WHERE {base})"
    # A signal is one layer's alone.
    return f"any_value({column})"
