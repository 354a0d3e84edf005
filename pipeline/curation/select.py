"""Chooses clips by predicates over the catalog, and counts what each condition costs; no model runs and no byte moves.

A condition is a part of a WHERE, which removes the clips for which it is false, or a rule of a recipe, which removes
those for which it is true. A null does neither: the clip is undecided, and is not selected.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.catalog import clip_table
from pipeline.catalog.catalog import Catalog, open_dataset
from pipeline.catalog.dataset import check_geometry, manifest_columns, stored_recipe
from pipeline.catalog.predicates import IS_BASE, IS_JUDGED, IS_KEPT, is_fully_annotated_sql, status_sql
from pipeline.catalog.verdicts import judge_candidates
from pipeline.errors import RunError, UsageError, did_you_mean
from pipeline.formats.schema import Status
from pipeline.recipe.blueprint import Blueprint
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.recipe import load as load_recipe
from pipeline.recipe.rules import first_line, quote_name
from pipeline.storage.folder import Folder, parquet
from pipeline.storage.scratch import Scratch

FOLDER = "selections"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
# The key in the metadata of a selection's Parquet file that says how it was made.
_KEY = b"vdot_selection"
# Columns that counts and sums are made of.
_SUMS = ("status", "rule", "shard", "start_s", "end_s", "bytes", "recipe_hash")
_HAS_VERDICT = status_sql(Status.KEPT, Status.REJECTED, Status.PENDING, Status.FAILED)


@dataclass(frozen=True, slots=True)
class Condition:
    """What one condition costs: clips that it removes; clips that only this condition removes, as far as they were
    measured (what an early rule rejects is measured no further); and those for which it is null and that no other
    condition removes."""

    text: str
    removes: int
    alone: int
    undecided: int


@dataclass(frozen=True, slots=True)
class Difference:
    """How many clips are new and how many are gone compared with an earlier selection."""

    name: str
    added: int
    removed: int


@dataclass(frozen=True, slots=True)
class Selection:
    """A selection. `verdicts` counts the clips by verdict; `where` tests the clips whose verdict is kept, of which
    `selected` pass.

    `rules` are those of the recipe passed in, if any, and the verdicts are then its own. `seconds` of video and `bytes`
    of samples are of the selected clips; `file` is where their ids were written, in `out`.
    """

    out: str
    sequence: int
    verdicts: dict[str, int]
    selected: int
    undecided: int
    seconds: float
    bytes: int
    rules: list[Condition]
    where: list[Condition]
    against: Difference | None
    file: str | None


def select(
    out: str,
    where: Sequence[str] = (),
    *,
    recipe_file: Path | None = None,
    rules: Sequence[str] = (),
    name: str | None = None,
    against: str | None = None,
) -> Selection:
    """Select the kept clips of OUT for which every predicate of `where` is true.

    `recipe_file`: judge all clips by its rules first; those that pass and are not fully annotated are pending, and
    `ingest` with this recipe annotates just those. `rules`: changes to the rules of the recipe (else of the one that
    OUT was made with), each "NAME: PREDICATE"; without a predicate the rule is dropped. `name`: keep the selection
    under it. `against`: the selection to compare with, by default the newest. Raises `UsageError` for an invalid
    predicate, an unknown column or name, and where a name is taken by another selection.
    """
    if name is not None and not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a valid name for a selection: use up to 100 letters, digits, '.', '_' and '-'"
        )
    with Scratch() as scratch:
        catalog = Catalog(open_dataset(out), scratch.path)
        recipe = load_recipe(recipe_file) if recipe_file else None
        if rules:
            recipe = _change_rules(recipe or stored_recipe(catalog), rules)
        blueprint = _build_blueprint(catalog, recipe, out)
        con = catalog.connect(blueprint.schema()) if blueprint else catalog.connect()
        parts = [part for text in where for part in split_conditions(text, con)]
        columns = clip_table.resolve_columns(parts, con)
        if blueprint is None:
            clip_table.create(con, "judged", dict.fromkeys([*_SUMS, *columns]), _HAS_VERDICT)
        else:
            _judge_clips(con, blueprint, columns)
        rule_costs = _measure_rule_costs(con, recipe) if recipe else []
        clip_table.check_predicates(parts, "judged", con)
        con.execute(f"CREATE VIEW kept_clips AS SELECT * FROM judged WHERE {IS_KEPT}")
        costs = _measure_costs(con, "kept_clips", [(part, f"NOT ({part}\n)") for part in parts], "where_results")
        ((selected, undecided, seconds, size),) = con.execute(
            "SELECT count(*) FILTER (vdot_removed = false), count(*) FILTER (vdot_removed IS NULL), "
            "coalesce(sum(end_s - start_s) FILTER (vdot_removed = false), 0), "
            "coalesce(sum(bytes) FILTER (vdot_removed = false), 0) FROM where_results JOIN kept_clips USING (clip_id)"
        ).fetchall()
        ids = con.sql("SELECT clip_id FROM where_results WHERE vdot_removed = false ORDER BY clip_id").to_arrow_table()
        verdicts = con.execute("SELECT status, count(*) FROM judged GROUP BY ALL").fetchall()
        earlier = against or _find_newest(catalog.out, name)
        difference = _compare_selections(con, catalog.out, earlier, ids) if earlier else None
        description = {"sequence": catalog.sequence, "where": list(where), "recipe": recipe.text if recipe else None}
        return Selection(
            out=catalog.out.url,
            sequence=catalog.sequence,
            verdicts=dict(sorted(verdicts)),
            selected=selected,
            undecided=undecided,
            seconds=seconds,
            bytes=int(size),
            rules=rule_costs,
            where=costs,
            against=difference,
            file=_save_selection(catalog.out, name, ids, description) if name else None,
        )


def split_conditions(text: str, con: duckdb.DuckDBPyConnection) -> list[str]:
    """Split a predicate at AND into parts, as DuckDB writes them; an invalid one stays whole."""
    row = con.execute("SELECT json_serialize_sql(?)", [f"SELECT ({text}\n)"]).fetchone()
    assert row is not None
    tree = json.loads(row[0])
    if tree["error"] or len(tree["statements"]) != 1:
        return [text]
    node = tree["statements"][0]["node"]
    (expression, *extra) = node.get("select_list") or [{}]
    if extra or expression.get("type") != "CONJUNCTION_AND":
        return [text]
    parts = []
    for part in expression["children"]:
        node["select_list"] = [part]
        ((sql,),) = con.execute("SELECT json_deserialize_sql(?)", [json.dumps(tree)]).fetchall()
        parts.append(_strip_parentheses(sql.removeprefix("SELECT "), con))
    return parts


def _strip_parentheses(sql: str, con: duckdb.DuckDBPyConnection) -> str:
    """Remove parentheses around the whole expression."""
    inner = sql.removeprefix("(").removesuffix(")")
    ((tree,),) = con.execute("SELECT json_serialize_sql(?)", [f"SELECT {inner}"]).fetchall()
    return sql if json.loads(tree)["error"] else inner


def _change_rules(recipe: Recipe, rules: Iterable[str]) -> Recipe:
    """A recipe with these rules changed."""
    changed = dict(recipe.rules)
    named_rules: set[str] = set()
    for rule in rules:
        name, colon, predicate = (part.strip() for part in rule.partition(":"))
        if not name or not colon or (not predicate and name not in changed):
            hint = did_you_mean(name, changed) if colon else ""
            raise UsageError(
                f"--rule {rule!r} is neither a rule of this recipe nor a new one, as in 'too_dark: luma < 40'{hint}"
            )
        if name in named_rules:
            raise UsageError(f"--rule: {name!r} is given twice")
        named_rules.add(name)
        changed[name] = predicate
    return Recipe.model_validate(
        recipe.model_dump() | {"rules": {name: predicate for name, predicate in changed.items() if predicate}}
    )


def _build_blueprint(catalog: Catalog, recipe: Recipe | None, out: str) -> Blueprint | None:
    if recipe is None:
        return None
    check_geometry(recipe, stored_recipe(catalog), out)
    return Blueprint.for_ingest(recipe, manifest_columns(catalog, recipe))


def _judge_clips(con: duckdb.DuckDBPyConnection, blueprint: Blueprint, columns: Iterable[str]) -> None:
    """Make the table `judged`, with the verdicts that an ingest with this recipe would start from."""
    rules = blueprint.rules()
    measured = "".join(f", {quote_name(column)}" for column in rules.columns if column not in ("clip_id", "shard"))
    con.execute(
        f"CREATE TABLE candidate AS SELECT clip_id{measured}, "
        f"{is_fully_annotated_sql(blueprint.lineage)} AS vdot_whole "
        f"FROM clips WHERE {IS_BASE} AND {IS_JUDGED}"
    )
    judge_candidates(con, rules)
    clip_table.create(con, "stored", dict.fromkeys([*_SUMS, "tasks", *columns]), _HAS_VERDICT)
    con.execute(
        "CREATE TABLE judged AS SELECT s.* REPLACE ("
        f"CASE WHEN {status_sql(Status.KEPT, table='v.')} AND NOT vdot_whole THEN '{Status.PENDING}' "
        "ELSE coalesce(v.status, s.status) END AS status, v.rule AS rule, "
        f"CASE WHEN NOT {status_sql(Status.REJECTED, table='v.')} AND vdot_whole THEN fit.tasks END AS tasks) "
        "FROM stored s LEFT JOIN verdict v USING (clip_id) LEFT JOIN candidate USING (clip_id) "
        "LEFT JOIN fit USING (clip_id)"
    )


def _measure_rule_costs(con: duckdb.DuckDBPyConnection, recipe: Recipe) -> list[Condition]:
    rules = [(f"{name}: {text}", text) for name, text in recipe.rules.items()]
    return _measure_costs(con, "candidate", rules, "rule_results")


def _measure_costs(
    con: duckdb.DuckDBPyConnection, table: str, conditions: Sequence[tuple[str, str]], target: str
) -> list[Condition]:
    """Count what each condition (text, SQL that is true for what it removes) costs in `table`.

    The table `target` gets `vdot_removed` of each clip: true where a condition removes it, null where none does and one
    is null; and `vdot_removal_count`, how many conditions remove it.
    """
    tests = "".join(f", ({sql}\n) AS vdot_{index}" for index, (_, sql) in enumerate(conditions))
    names = [f"vdot_{index}" for index in range(len(conditions))]
    removing = " + ".join([f"coalesce({name}, false)::INT" for name in names]) or "0"
    try:
        con.execute(
            f"CREATE TABLE {target} AS SELECT *, {' OR '.join(names) or 'false'} AS vdot_removed, "
            f"{removing} AS vdot_removal_count FROM (SELECT clip_id{tests} FROM {table})"
        )
    except duckdb.Error as error:
        raise UsageError(
            f"a condition cannot be evaluated on the values that are there (TRY_CAST?): {first_line(error)}"
        ) from error
    counts = "".join(
        f", count(*) FILTER ({name}), count(*) FILTER ({name} AND vdot_removal_count = 1), "
        f"count(*) FILTER ({name} IS NULL AND vdot_removal_count = 0)"
        for name in names
    )
    (row,) = con.execute(f"SELECT count(*){counts} FROM {target}").fetchall()
    return [Condition(text, *row[1 + 3 * index : 4 + 3 * index]) for index, (text, _) in enumerate(conditions)]


def _file_name(name: str) -> str:
    return f"{FOLDER}/{name}.parquet"


def _list_selections(out: Folder) -> list[tuple[str, float]]:
    """The selections of OUT by name, each with the time it was written."""
    files = [
        (entry.name.removesuffix(".parquet"), entry.modified)
        for entry in out.list_files(FOLDER)
        if ".parquet" in entry.name
    ]
    return [(name, modified) for name, modified in files if _NAME.fullmatch(name)]


def _find_newest(out: Folder, excluded: str | None) -> str | None:
    """The name of the selection that was written last, except the excluded one."""
    dated = [(modified, name) for name, modified in _list_selections(out) if name != excluded]
    return max(dated, default=(0.0, None))[1]


def load_selection(out: Folder, name: str) -> pa.Table:
    """Load a named selection: `clip_id` of each clip, sorted. Raises `UsageError` when there is none."""
    names = [selection for selection, _ in _list_selections(out)]
    if name not in names:
        hint = did_you_mean(name, names) if names else "; none was kept yet"
        raise UsageError(f"{out.url} has no selection {name!r}{hint}")
    try:
        return pq.read_table(pa.BufferReader(out.read(_file_name(name))), columns=["clip_id"])
    except pa.ArrowException as error:
        raise RunError(f"{out.url}/{_file_name(name)} cannot be read: {error}; delete it, and select again") from error


def _compare_selections(con: duckdb.DuckDBPyConnection, out: Folder, name: str, ids: pa.Table) -> Difference:
    con.register("now_ids", ids)
    con.register("earlier_ids", load_selection(out, name))
    ((added, removed),) = con.execute(
        "SELECT count(*) FILTER (e.clip_id IS NULL), count(*) FILTER (n.clip_id IS NULL) "
        "FROM now_ids n FULL JOIN earlier_ids e USING (clip_id)"
    ).fetchall()
    return Difference(name, added, removed)


def _save_selection(out: Folder, name: str, ids: pa.Table, description: dict[str, Any]) -> str:
    table = ids.cast(pa.schema([("clip_id", pa.string())], metadata={_KEY: json.dumps(description)}))
    if not out.create(_file_name(name), parquet(table)):
        raise UsageError(f"{out.url} has another selection {name!r} already: choose another name")
    return _file_name(name)
