"""Writes one HTML report of a dataset: what was kept and what was not, in pictures, and what other thresholds would do.

The page makes no requests: pictures, small videos and the values that the sliders count are inside it. Up to
`sliders.ROWS` clips are all included, so that the sliders' counts are those of `select`; of more, a random sample is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from pipeline.catalog.catalog import Catalog, open_dataset, utc_now, values
from pipeline.catalog.dataset import manifest_columns, stored_recipe
from pipeline.catalog.erase import REPORT, delete_older_report, stamp_report
from pipeline.catalog.predicates import IS_BASE, IS_FAILED, IS_KEPT, IS_REJECTED, is_fully_annotated_sql, status_sql
from pipeline.errors import RunError
from pipeline.formats.schema import Status
from pipeline.recipe.blueprint import Blueprint
from pipeline.recipe.rules import quote_name
from pipeline.reporting.cards import COLUMNS, check_outside, check_writable, render, write_page
from pipeline.reporting.sheets import find_source_folder, make_near_misses, make_sheets
from pipeline.reporting.sliders import make_sliders, pack_rows, pick_thresholds
from pipeline.reporting.thresholds import find_thresholds
from pipeline.storage.folder import Folder
from pipeline.storage.scratch import Scratch

# Columns that a page needs besides the signals: all columns of a million clips would fill the memory.
_COLUMNS = (*COLUMNS, "tasks", "licence")


@dataclass(frozen=True, slots=True)
class Report:
    """What was written, and from how many clips."""

    file: str
    clips: int
    rows: int
    shown: int
    size: int


def report(out: str, file: Path | None = None) -> Report:
    """Write the page about a dataset into `file`, or into OUT as `report.html` if that is None.

    A sample that cannot be read is shown without pictures. Raises `UsageError` where there is no dataset, or `file`
    cannot be written or is another one in OUT, `RunError` where OUT cannot be written or a clip was forgotten while the
    page was made, and the errors of reading the catalog.
    """
    folder = open_dataset(out)
    if file and folder.local and file.parent.resolve() / file.name == folder.local.resolve() / REPORT:
        file = None
    if file is None:
        _check_folder(folder)
    else:
        check_outside(file, folder)
        check_writable(file)
    with Scratch() as scratch:
        catalog = Catalog(folder, scratch.path)
        facts, rows = _gather_facts(catalog)
        page = stamp_report(render("report.html", facts), catalog.sequence)
        _check_forgotten(catalog)
        if file is None:
            folder.put(REPORT, page)
        else:
            write_page(file, page)
        try:
            # Again: what was forgotten while the page was written is in it.
            _check_forgotten(catalog)
        except BaseException:
            _remove_page(folder, file, catalog.sequence)
            raise
    cards = sum(len(sheet.cards) for sheet in facts["sheets"].values()) + len(facts["near_misses"])
    place = f"{folder.url}/{REPORT}" if file is None else str(file)
    return Report(place, sum(facts["counts"].values()), rows, cards, len(page))


def _check_folder(folder: Folder) -> None:
    """Raises `RunError` where OUT cannot be written to, before any work is done for the page."""
    try:
        folder.check_writable()
    except RunError as error:
        raise RunError(f"{error}; `--html FILE` writes the report to another place") from error


def _check_forgotten(catalog: Catalog) -> None:
    """Raises `RunError` where a clip was forgotten since the catalog was read.

    `forget` deletes the report of OUT after its commit: a page that is written after that finds the commit here.
    """
    forgotten = catalog.connect().execute("SELECT 1 FROM forgotten WHERE sequence > ?", [catalog.sequence]).fetchone()
    if forgotten:
        raise RunError("clips were forgotten while the report was made, and it was not kept: make it again")


def _remove_page(folder: Folder, file: Path | None, sequence: int) -> None:
    """Remove the page that was made from part `sequence`, but not one that another report has put there since."""
    if file is None:
        delete_older_report(folder, sequence + 1)
    else:
        page = file.resolve()
        delete_older_report(Folder(str(page.parent)), sequence + 1, page.name)


def _gather_facts(catalog: Catalog) -> tuple[dict[str, Any], int]:
    """Everything that the page's template needs, and the number of clips that its sliders count."""
    chosen = stored_recipe(catalog)
    blueprint = Blueprint.for_ingest(chosen, manifest_columns(catalog, chosen))
    con = catalog.connect(blueprint.schema(), upto=catalog.sequence)
    columns = dict.fromkeys([*_COLUMNS, *blueprint.signals, *blueprint.rules().columns])
    con.execute(
        f"CREATE TABLE base AS SELECT {', '.join(map(quote_name, columns))}, "
        f"{is_fully_annotated_sql(blueprint.lineage)} AS vdot_whole "
        f"FROM clips WHERE {IS_BASE}"
    )
    limits = pick_thresholds(find_thresholds(chosen.rules), blueprint)
    sliders = make_sliders(con, blueprint, limits)
    model, rows = pack_rows(con, blueprint, sliders, limits)
    source_folder = find_source_folder(con)
    url = catalog.out.url
    facts = {
        "out": url,
        "name": url.rstrip("/").rpartition("/")[2] or url,
        "made": utc_now(),
        "sequence": catalog.sequence,
        "source_folder": source_folder,
        "counts": dict(con.execute("SELECT status, count(*) FROM base GROUP BY status").fetchall()),
        "sources": dict(con.execute("SELECT status, count(*) FROM sources GROUP BY status").fetchall()),
        "sheets": make_sheets(con, catalog.out, chosen.rules, source_folder),
        "sliders": sliders,
        "model": model,
        "near_misses": make_near_misses(con, catalog.out, limits, source_folder),
        "funnel": _build_funnel(con),
        "tasks": _count_tasks(con, list(chosen.fitness)),
        "seconds": _sum_seconds(con),
        "lineage": _read_lineage(con),
        "licences": con.execute(
            f"SELECT coalesce(licence, 'not stated'), count(*) FROM base WHERE {IS_KEPT} "
            "GROUP BY ALL ORDER BY count(*) DESC, 1 LIMIT 40"
        ).fetchall(),
    }
    return facts, rows


def _build_funnel(con: duckdb.DuckDBPyConnection) -> list[tuple[str, int, int]]:
    """(step, clips left after it, clips that it took): cut, each rule by how many it took, failures, pending."""
    ((remaining,),) = con.execute("SELECT count(*) FROM base").fetchall()
    steps = [("cut from the sources", remaining, 0)]
    taken = con.execute(
        f"SELECT CASE WHEN {IS_REJECTED} THEN rule WHEN {IS_FAILED} THEN 'failed: ' || code ELSE status END AS what, "
        f"count(*) FROM base WHERE NOT {IS_KEPT} GROUP BY ALL "
        f"ORDER BY bool_or({IS_REJECTED}) DESC, bool_or({IS_FAILED}) DESC, count(*) DESC, what"
    ).fetchall()
    for step, count in taken:
        remaining -= count
        steps.append((step or "a rule without a name", remaining, count))
    return steps


def _count_tasks(con: duckdb.DuckDBPyConnection, names: Sequence[str]) -> list[tuple[str, int]]:
    counts = dict(
        con.execute(
            f"SELECT task, count(*) FROM (SELECT unnest(tasks) AS task FROM base WHERE {IS_KEPT}) GROUP BY task"
        ).fetchall()
    )
    return [(name, counts.get(name, 0)) for name in names]


def _sum_seconds(con: duckdb.DuckDBPyConnection) -> list[tuple[str, float]]:
    rows: list[tuple[str, float]] = con.execute(
        "SELECT step.key, sum(step.value) FROM (SELECT unnest(map_entries(timings)) AS step FROM parts "
        "WHERE timings IS NOT NULL) GROUP BY ALL HAVING sum(step.value) > 0 ORDER BY 2 DESC, 1"
    ).fetchall()
    return rows


def _read_lineage(con: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    has_lineage = status_sql(Status.KEPT, Status.PENDING, Status.COMPARED)
    return values(
        con,
        "SELECT made.name, made.version, made.weights_id, made.weights_licence, count(DISTINCT clip_id) AS clips FROM "
        f"(SELECT clip_id, unnest(lineage) AS made FROM clips WHERE {has_lineage}) "
        "GROUP BY ALL ORDER BY 1, 2",
    )
