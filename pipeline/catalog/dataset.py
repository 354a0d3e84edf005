"""An existing dataset: exclusive access to its catalog, and its stored recipe and manifest columns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.catalog.catalog import PARTS, Catalog
from pipeline.catalog.cleanup import check_complete
from pipeline.catalog.predicates import STORED_RECIPE_QUERY
from pipeline.errors import RunError, UsageError
from pipeline.formats.schema import COLUMNS
from pipeline.recipe import registry
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.recipe import parse as parse_recipe
from pipeline.storage.folder import Folder
from pipeline.storage.lock import hold_lock


@contextmanager
def lock_catalog(out: Folder, scratch: Path) -> Iterator[Catalog]:
    """The catalog of an OUT, locked for the caller. Raises `RunError` as `hold_lock`, and if the catalog has gaps."""
    with hold_lock(out):
        catalog = Catalog(out, scratch)
        check_complete(catalog)
        yield catalog


def stored_recipe(catalog: Catalog, upto: int | None = None) -> Recipe:
    """The recipe of the newest ingest into a dataset, or into its first `upto` parts. Raises `RunError` if the catalog
    has none."""
    con = catalog.connect(upto=upto)
    row = con.execute(STORED_RECIPE_QUERY).fetchone()
    if row is None:
        raise RunError(f"the catalog in {catalog.out.url} has no row of a run: restore its folder {PARTS}/")
    return parse_recipe(row[0], f"stored in {catalog.out.url}")


def manifest_columns(catalog: Catalog, recipe: Recipe) -> tuple[str, ...]:
    """The manifest columns of a dataset, which rules may name."""
    own_columns = {*COLUMNS.names, *registry.collect_signals(recipe.annotators, recipe.filters)}
    described = catalog.connect().execute("SELECT column_name, column_type FROM (DESCRIBE parts)").fetchall()
    return tuple(name for name, kind, *_ in described if kind == "VARCHAR" and name not in own_columns)


def check_geometry(recipe: Recipe, stored: Recipe, out: str) -> None:
    """Raises `UsageError` if a recipe would make clips that cannot be mixed with those that OUT holds."""
    if stored.geometry != recipe.geometry:
        raise UsageError(
            f"{out} holds clips of another kind and cannot mix them: it has {stored.geometry}; the recipe says "
            f"{recipe.geometry}. Choose another OUT, or the same grid, shots and crop_bars."
        )
