"""A dataset that is there: to be written to by one alone, and what it says of itself: recipe and manifest columns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.catalog.catalog import PARTS, Catalog
from pipeline.catalog.cleanup import check_complete
from pipeline.errors import RunError, UsageError
from pipeline.formats.schema import BASE_LAYER, COLUMNS
from pipeline.recipe import recipe, registry
from pipeline.recipe.recipe import Recipe
from pipeline.storage.folder import Folder
from pipeline.storage.lock import alone


@contextmanager
def owned(out: Folder, scratch: Path) -> Iterator[Catalog]:
    """The catalog of an OUT that is the caller's alone. Raises `RunError` as `alone`, and when the catalog has gaps."""
    with alone(out):
        catalog = Catalog(out, scratch)
        check_complete(catalog)
        yield catalog


def stored_recipe(catalog: Catalog, upto: int | None = None) -> Recipe:
    """The recipe of the newest ingest into a dataset, of its first `upto` parts. Raises `RunError` when the catalog has
    none."""
    con = catalog.connect(upto=upto)
    row = con.execute("SELECT recipe FROM runs WHERE layer = ? ORDER BY sequence DESC", [BASE_LAYER]).fetchone()
    if row is None:
        raise RunError(f"the catalog in {catalog.out.url} has no row of a run: restore its folder {PARTS}/")
    return recipe.parse(row[0], f"stored in {catalog.out.url}")


def manifest_columns(catalog: Catalog, chosen: Recipe) -> tuple[str, ...]:
    """The manifest columns that a dataset has, which rules may name."""
    ours = {*COLUMNS.names, *registry.signals(chosen.annotators, chosen.filters)}
    described = catalog.connect().execute("SELECT column_name, column_type FROM (DESCRIBE parts)").fetchall()
    return tuple(name for name, kind, *_ in described if kind == "VARCHAR" and name not in ours)


def check_geometry(chosen: Recipe, stored: Recipe, out: str) -> None:
    """Raises `UsageError` when a recipe would make clips that one OUT cannot mix with those it holds."""
    if stored.geometry != chosen.geometry:
        raise UsageError(
            f"{out} holds clips of another kind and cannot mix them: it has {stored.geometry}; the recipe says "
            f"{chosen.geometry}. Choose another OUT, or the same grid, shots and crop_bars."
        )
