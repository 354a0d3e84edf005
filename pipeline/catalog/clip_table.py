"""The catalog as people query it: one row per clip, wide with what every layer added to it.

A predicate may name any column of the catalog, any signal of any layer, any column of a manifest, and those that are
made here: `layers` (the layers that a clip has), `made_by` and `weights_licence` (from the name of an annotator or
filter to its version and to the licence of its weights: `made_by['pose'] = '3'`), and `duplicate_rank` (a clip's place
among the near duplicates that are kept today: 1 for the best, and for a clip that has none).
"""

from __future__ import annotations

from collections.abc import Iterable

import duckdb

from pipeline.errors import UsageError, did_you_mean
from pipeline.formats.schema import BASE_LAYER, COLUMNS, COMPARED, DUPLICATES
from pipeline.recipe.rules import RuleError, columns_of, first_line, named, quoted

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
_OWN = f"flatten(list(list_filter(lineage, lambda e: e.name = layer)) FILTER (WHERE layer <> '{BASE_LAYER}'))"
_BASE = f"flatten(list(lineage) FILTER (WHERE layer = '{BASE_LAYER}'))"


def _by_name(value: str) -> str:
    """SQL for a map of names to what their lineage says. An annotator that made a layer may be part of the recipe
    since: then the base layer's word counts."""
    maps = (
        f"map_from_entries(list_transform(coalesce({entries}, []), lambda e: (e.name, e.{value})))"
        for entries in (_OWN, _BASE)
    )
    return f"map_concat({', '.join(maps)})"


_MADE = {
    "layers": f"list(layer ORDER BY layer) FILTER (WHERE layer <> '{BASE_LAYER}' AND status IN ('kept', '{COMPARED}'))",
    "made_by": _by_name("version"),
    "weights_licence": _by_name("weights_licence"),
}


# The best of a group may have lost its place since: a rule that became stricter, a takedown.
_RANK = "duplicate_rank"
_RANKED = (
    "row_number() OVER (PARTITION BY coalesce(vdot_group, clip_id) "
    "ORDER BY vdot_status <> 'kept', vdot_best IS NOT NULL, vdot_similarity DESC, clip_id)"
)
_FOR_RANK = {
    "vdot_group": "duplicate_group", "vdot_best": "duplicate_of", "vdot_similarity": "duplicate_similarity",
    "vdot_status": "status",
}  # fmt: skip


def columns(con: duckdb.DuckDBPyConnection) -> list[str]:
    """What a predicate may name; `con` is a connection of `Catalog.connect`."""
    described = con.execute("SELECT column_name FROM (DESCRIBE clips)").fetchall()
    return [name for (name,) in described if name not in _INTERNAL] + [*_MADE, _RANK]


def used(predicates: Iterable[str], con: duckdb.DuckDBPyConnection) -> list[str]:
    """The columns that predicates ask for, as the catalog spells them.

    Raises `UsageError` for what is no predicate over columns, and for an unknown column, with the nearest name.
    """
    known = {name.lower(): name for name in columns(con)}
    found: dict[str, None] = {}
    for text in predicates:
        try:
            asked = columns_of("where", text, con)
        except RuleError as error:
            raise UsageError(str(error)) from error
        for column in asked:
            if column.lower() not in known:
                raise UsageError(f"where: no column named {column!r}{did_you_mean(column, known.values())}")
            found[known[column.lower()]] = None
    return list(found)


def check(predicates: Iterable[str], table: str, con: duckdb.DuckDBPyConnection) -> None:
    """Raises `UsageError` for a predicate that cannot be asked of `table`, or that is neither true nor false."""
    for text in predicates:
        try:
            ((kind,),) = con.execute(
                f"SELECT column_type FROM (DESCRIBE SELECT ({text}\n) AS it FROM {table} WHERE ({text}\n))"
            ).fetchall()
        except duckdb.Error as error:
            raise UsageError(f"where: {text!r} cannot be evaluated: {first_line(error)}") from error
        if kind != "BOOLEAN":
            raise UsageError(f"where: {text!r} is {kind.lower()}, and must be true or false, as `luma > 40` is")


def make(con: duckdb.DuckDBPyConnection, table: str, wanted: Iterable[str], where: str = "true") -> None:
    """Make `table` with `clip_id` and the `wanted` columns of every clip for whose base row `where` is true."""
    asked = [name for name in wanted if name != "clip_id"]
    values = {name: _value(name) for name in asked if name != _RANK}
    if _RANK in asked:
        values |= {name: _value(column) for name, column in _FOR_RANK.items()}
    made = "".join(f", {value} AS {named(name)}" for name, value in values.items())
    ranked = f"* EXCLUDE ({', '.join(_FOR_RANK)}), {_RANKED} AS {_RANK}" if _RANK in asked else "*"
    con.execute(
        f"CREATE TABLE {table} AS SELECT {ranked} FROM (SELECT clip_id{made} FROM clips GROUP BY clip_id "
        f"HAVING bool_or(layer = {quoted(BASE_LAYER)} AND ({where})))"
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
    # A signal is one layer's alone, unless its annotator came into the recipe later: then it is the base layer's.
    return f"coalesce(any_value({column}) FILTER (WHERE {base}), any_value({column}))"
