"""Choose clips by predicates over the catalog, and see what each condition costs; no model runs and no byte moves.

A condition is a part of a WHERE, which removes the clips for which it is false, or a rule of a recipe, which removes
those for which it is true. A null does neither: the clip is left undecided, and is not selected.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.catalog import clip_table
from pipeline.catalog.catalog import Catalog, open_dataset
from pipeline.catalog.dataset import check_geometry, manifest_columns, stored_recipe
from pipeline.catalog.ledger import made_by_sql
from pipeline.errors import RunError, UsageError, did_you_mean
from pipeline.formats.schema import BASE_LAYER
from pipeline.recipe import recipe as recipes
from pipeline.recipe.blueprint import Blueprint
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.rules import first_line, quote_name, quote_text
from pipeline.storage.folder import Folder, parquet
from pipeline.storage.scratch import Scratch

FOLDER = "selections"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
# The key of a selection's story in the metadata of its Parquet file.
_KEY = b"vdot_selection"
# Columns of which sums are shown.
_SUMS = ("status", "rule", "shard", "start_s", "end_s", "bytes", "recipe_hash")
_JUDGED = "status IN ('kept', 'rejected', 'pending')"
_ALL = "status IN ('kept', 'rejected', 'pending', 'failed')"


@dataclass(frozen=True, slots=True)
class Condition:
    """What one condition costs: clips that it removes, those that nothing else is known to (what an early rule rejects
    is measured no further), and those for which it is null while nothing else removes them."""

    text: str
    removes: int
    alone: int
    undecided: int


@dataclass(frozen=True, slots=True)
class Difference:
    """What is new and what is gone against an earlier selection."""

    name: str
    added: int
    removed: int


@dataclass(frozen=True, slots=True)
class Selection:
    """A selection: of the clips by verdict (`verdicts`), those `kept` were asked `where`, and `selected` passed.

    `rules` are those of a recipe that was given, and the verdicts are then what it gives. `seconds` of video and
    `bytes` of samples are of what was selected; `file` is where its ids were written, in `out`.
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

    def as_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))


def select(
    out: str,
    where: Sequence[str] = (),
    *,
    recipe_file: Path | None = None,
    rules: Sequence[str] = (),
    name: str | None = None,
    against: str | None = None,
) -> Selection:
    """Select of the kept clips of OUT those for which every predicate of `where` is true.

    `recipe_file`: judge all clips by its rules first; those that it lets in and that are not fully annotated are
    pending, and `ingest` with this recipe annotates just those. `rules`: those of the recipe (else of the one that OUT
    was made with) that are other ones, each "NAME: PREDICATE"; without a predicate the rule is left out. `name`: keep
    the selection under it. `against`: the selection to compare with, by default the newest. Raises `UsageError` for
    what is no predicate, an unknown column or name, and where a name is taken by another selection.
    """
    if name is not None and not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for a selection: up to 100 letters, digits, '.', '_' and '-' make one")
    with Scratch() as scratch:
        catalog = Catalog(open_dataset(out), scratch.path)
        chosen = recipes.load(recipe_file) if recipe_file else None
        if rules:
            chosen = _changed(chosen or stored_recipe(catalog), rules)
        blueprint = _blueprint(catalog, chosen, out)
        con = catalog.connect(blueprint.schema()) if blueprint else catalog.connect()
        parts = [part for text in where for part in conditions(text, con)]
        asked = clip_table.resolve_columns(parts, con)
        if blueprint is None:
            clip_table.create(con, "judged", dict.fromkeys([*_SUMS, *asked]), _ALL)
        else:
            _judge(con, blueprint, asked)
        ruled = _rules(con, chosen) if chosen else []
        clip_table.check_predicates(parts, "judged", con)
        con.execute("CREATE VIEW pool AS SELECT * FROM judged WHERE status = 'kept'")
        found = _conditions(con, "pool", [(part, f"NOT ({part}\n)") for part in parts], "chosen")
        ((selected, undecided, seconds, size),) = con.execute(
            "SELECT count(*) FILTER (vdot_out = false), count(*) FILTER (vdot_out IS NULL), "
            "coalesce(sum(end_s - start_s) FILTER (vdot_out = false), 0), "
            "coalesce(sum(bytes) FILTER (vdot_out = false), 0) FROM chosen JOIN pool USING (clip_id)"
        ).fetchall()
        ids = con.sql("SELECT clip_id FROM chosen WHERE vdot_out = false ORDER BY clip_id").to_arrow_table()
        verdicts = con.execute("SELECT status, count(*) FROM judged GROUP BY ALL").fetchall()
        earlier = against or _newest(catalog.out, name)
        difference = _difference(con, catalog.out, earlier, ids) if earlier else None
        story = {"sequence": catalog.sequence, "where": list(where), "recipe": chosen.text if chosen else None}
        return Selection(
            out=catalog.out.url,
            sequence=catalog.sequence,
            verdicts=dict(sorted(verdicts)),
            selected=selected,
            undecided=undecided,
            seconds=seconds,
            bytes=int(size),
            rules=ruled,
            where=found,
            against=difference,
            file=_save(catalog.out, name, ids, story) if name else None,
        )


def conditions(text: str, con: duckdb.DuckDBPyConnection) -> list[str]:
    """The parts of a predicate that AND joins, as DuckDB writes them; the whole where it is not valid."""
    row = con.execute("SELECT json_serialize_sql(?)", [f"SELECT ({text}\n)"]).fetchone()
    assert row is not None
    tree = json.loads(row[0])
    if tree["error"] or len(tree["statements"]) != 1:
        return [text]
    node = tree["statements"][0]["node"]
    (first, *others) = node.get("select_list") or [{}]
    if others or first.get("type") != "CONJUNCTION_AND":
        return [text]
    found = []
    for part in first["children"]:
        node["select_list"] = [part]
        ((sql,),) = con.execute("SELECT json_deserialize_sql(?)", [json.dumps(tree)]).fetchall()
        found.append(_bare(sql.removeprefix("SELECT "), con))
    return found


def _bare(sql: str, con: duckdb.DuckDBPyConnection) -> str:
    """Without the parentheses around the whole."""
    inner = sql.removeprefix("(").removesuffix(")")
    ((tree,),) = con.execute("SELECT json_serialize_sql(?)", [f"SELECT {inner}"]).fetchall()
    return sql if json.loads(tree)["error"] else inner


def _changed(chosen: Recipe, rules: Iterable[str]) -> Recipe:
    """A recipe with other rules."""
    changed = dict(chosen.rules)
    told: set[str] = set()
    for rule in rules:
        name, colon, predicate = (part.strip() for part in rule.partition(":"))
        if not name or not colon or (not predicate and name not in changed):
            near = did_you_mean(name, changed) if colon else ""
            raise UsageError(
                f"--rule {rule!r} is no rule of this recipe, nor a new one, as 'too_dark: luma < 40' is{near}"
            )
        if name in told:
            raise UsageError(f"--rule: {name!r} is given twice")
        told.add(name)
        changed[name] = predicate
    return Recipe.model_validate(
        chosen.model_dump() | {"rules": {name: predicate for name, predicate in changed.items() if predicate}}
    )


def _blueprint(catalog: Catalog, chosen: Recipe | None, out: str) -> Blueprint | None:
    if chosen is None:
        return None
    check_geometry(chosen, stored_recipe(catalog), out)
    return Blueprint.for_ingest(chosen, manifest_columns(catalog, chosen))


def _judge(con: duckdb.DuckDBPyConnection, blueprint: Blueprint, asked: Iterable[str]) -> None:
    """Make the table `judged`, with the verdicts that an ingest with this recipe would come to before it works."""
    rules = blueprint.rules()
    measured = "".join(f", {quote_name(column)}" for column in rules.columns if column not in ("clip_id", "shard"))
    con.execute(
        f"CREATE TABLE candidate AS SELECT clip_id{measured}, "
        f"shard IS NOT NULL AND {made_by_sql(blueprint.lineage, any_version=True)} AS vdot_whole "
        f"FROM clips WHERE layer = {quote_text(BASE_LAYER)} AND {_JUDGED}"
    )
    try:
        con.execute(f"CREATE TABLE verdict AS {rules.judge_table('candidate')}")
        con.execute(f"CREATE TABLE fit AS SELECT clip_id, {rules.tasks_sql()} AS tasks FROM candidate")
    except duckdb.Error as error:
        raise _unfit(error) from error
    clip_table.create(con, "stored", dict.fromkeys([*_SUMS, "tasks", *asked]), _ALL)
    con.execute(
        "CREATE TABLE judged AS SELECT s.* REPLACE (CASE WHEN v.status = 'kept' AND NOT vdot_whole THEN 'pending' "
        "ELSE coalesce(v.status, s.status) END AS status, v.rule AS rule, "
        "CASE WHEN v.status <> 'rejected' AND vdot_whole THEN fit.tasks END AS tasks) "
        "FROM stored s LEFT JOIN verdict v USING (clip_id) LEFT JOIN candidate USING (clip_id) "
        "LEFT JOIN fit USING (clip_id)"
    )


def _rules(con: duckdb.DuckDBPyConnection, chosen: Recipe) -> list[Condition]:
    given = [(f"{name}: {text}", text) for name, text in chosen.rules.items()]
    return _conditions(con, "candidate", given, "ruled")


def _conditions(
    con: duckdb.DuckDBPyConnection, table: str, given: Sequence[tuple[str, str]], into: str
) -> list[Condition]:
    """What each (text, SQL that is true for what it removes) costs in `table`.

    `into` gets `vdot_out` of each clip: true where one removes it, null where none does and one is null.
    """
    tests = "".join(f", ({sql}\n) AS vdot_{index}" for index, (_, sql) in enumerate(given))
    names = [f"vdot_{index}" for index in range(len(given))]
    removing = " + ".join([f"coalesce({name}, false)::INT" for name in names]) or "0"
    try:
        con.execute(
            f"CREATE TABLE {into} AS SELECT *, {' OR '.join(names) or 'false'} AS vdot_out, {removing} AS vdot_by "
            f"FROM (SELECT clip_id{tests} FROM {table})"
        )
    except duckdb.Error as error:
        raise _unfit(error) from error
    counts = "".join(
        f", count(*) FILTER ({name}), count(*) FILTER ({name} AND vdot_by = 1), "
        f"count(*) FILTER ({name} IS NULL AND vdot_by = 0)"
        for name in names
    )
    (row,) = con.execute(f"SELECT count(*){counts} FROM {into}").fetchall()
    return [Condition(text, *row[1 + 3 * index : 4 + 3 * index]) for index, (text, _) in enumerate(given)]


def _unfit(error: duckdb.Error) -> UsageError:
    return UsageError(f"a condition cannot be evaluated on the values that are there (TRY_CAST?): {first_line(error)}")


def _file(name: str) -> str:
    return f"{FOLDER}/{name}.parquet"


def _kept(out: Folder) -> list[tuple[str, float]]:
    """The selections of OUT by name, each with when it was written."""
    files = [
        (one.name.removesuffix(".parquet"), one.modified) for one in out.list_files(FOLDER) if ".parquet" in one.name
    ]
    return [(name, modified) for name, modified in files if _NAME.fullmatch(name)]


def _newest(out: Folder, but: str | None) -> str | None:
    """The name of the selection that was written last, apart from one."""
    found = [(modified, name) for name, modified in _kept(out) if name != but]
    return max(found, default=(0.0, None))[1]


def saved(out: Folder, name: str) -> pa.Table:
    """A selection that was kept: `clip_id` of each clip, sorted. Raises `UsageError` when there is none."""
    there = [one for one, _ in _kept(out)]
    if name not in there:
        near = did_you_mean(name, there) if there else "; none was kept yet"
        raise UsageError(f"{out.url} has no selection {name!r}{near}")
    try:
        return pq.read_table(pa.BufferReader(out.read(_file(name))), columns=["clip_id"])
    except pa.ArrowException as error:
        raise RunError(f"{out.url}/{_file(name)} cannot be read: {error}; delete it, and select again") from error


def _difference(con: duckdb.DuckDBPyConnection, out: Folder, name: str, ids: pa.Table) -> Difference:
    con.register("now_ids", ids)
    con.register("earlier_ids", saved(out, name))
    ((added, removed),) = con.execute(
        "SELECT count(*) FILTER (e.clip_id IS NULL), count(*) FILTER (n.clip_id IS NULL) "
        "FROM now_ids n FULL JOIN earlier_ids e USING (clip_id)"
    ).fetchall()
    return Difference(name, added, removed)


def _save(out: Folder, name: str, ids: pa.Table, story: dict[str, Any]) -> str:
    table = ids.cast(pa.schema([("clip_id", pa.string())], metadata={_KEY: json.dumps(story)}))
    if not out.create(_file(name), parquet(table)):
        raise UsageError(f"{out.url} has another selection {name!r} already: choose another name")
    return _file(name)
