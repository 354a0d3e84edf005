"""The Python API of the three commands that do work: `ingest`, `annotate` and `retry`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from annotators.weights import MissingWeights, path
from pipeline.catalog.catalog import BATCH, Catalog, open_dataset
from pipeline.catalog.dataset import check_geometry, lock_catalog, manifest_columns, stored_recipe
from pipeline.catalog.ledger import Ledger, check_foundations
from pipeline.catalog.predicates import IS_FAILED
from pipeline.engine.progress import Watcher
from pipeline.errors import OUR_FAULT, UsageError
from pipeline.formats.schema import COLUMNS, Status
from pipeline.ingest.run import Run
from pipeline.recipe import registry
from pipeline.recipe.blueprint import Blueprint
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.recipe import load as load_recipe
from pipeline.recipe.rules import quote_name
from pipeline.sources import source_list
from pipeline.sources.expand import Source, expand_sources
from pipeline.sources.source_list import Listing
from pipeline.storage.folder import Folder
from pipeline.storage.scratch import Scratch
from pipeline.video.shots import TransNet

# Columns of a source's row that make it a source again.
_SOURCE = ("source_uri", "source_size", "source_stamp", "licence")


@dataclass(slots=True)
class Summary:
    """The result of a run: all of OUT by verdict, and what this run did.

    clips: status -> reason (rule or code, "" for kept) -> count. sources likewise. seconds: step -> seconds of work,
    summed over workers.
    """

    out: str
    layer: str
    run_id: str
    clips: dict[str, dict[str, int]]
    sources: dict[str, dict[str, int]]
    done: dict[str, int]
    wall_s: float
    startup_s: float
    seconds: dict[str, float] = field(default_factory=dict)

    def count_defects(self) -> int:
        """Count the sources and clips that failed by a fault of vdot-data itself."""
        failed = (*self.clips.get(Status.FAILED, {}).items(), *self.sources.get(Status.FAILED, {}).items())
        return sum(count for code, count in failed if code in OUR_FAULT)


def ingest(
    sources: Iterable[str],
    out: str,
    *,
    recipe_file: Path | None = None,
    exclude: str | None = None,
    limit: int | None = None,
    address: str | None = None,
    cpus: int | None = None,
    rehash: bool = False,
    watcher: Watcher = lambda _: None,
) -> Summary:
    """Bring sources into OUT; what is there already stays and is not redone.

    `sources`: files, folders, globs, fsspec URLs or manifests. `address`: a running Ray cluster, else one of its own
    with `cpus` CPUs. `watcher` is called with the progress a few times a second. Raises `UsageError` before anything
    starts, and `RunError` when the run cannot continue.
    """
    recipe = load_recipe(recipe_file)
    with Scratch() as scratch:
        listing = source_list.write(expand_sources(sources, exclude), limit, scratch.path / "listing.parquet")
        folder = Folder(out)
        folder.check_creates()
        if folder.url.startswith("memory:"):
            raise UsageError(f"{out} exists in one process only; OUT must be a disk or a bucket that all workers see")
        blueprint = add_weights(
            Blueprint.for_ingest(recipe, merge_manifest_columns(listing, Catalog(folder, scratch.path), recipe))
        )
        folder.check_writable()
        with lock_catalog(folder, scratch.path) as catalog:
            if not catalog.is_empty() and catalog.connect().execute("SELECT 1 FROM sources LIMIT 1").fetchall():
                check_geometry(recipe, stored_recipe(catalog), out)
            ledger = Ledger(catalog, blueprint, listing, rehash=rehash)
            return _run_and_summarize(catalog, blueprint, ledger, scratch.path, address, cpus, watcher)


def retry(
    out: str,
    *,
    recipe_file: Path | None = None,
    address: str | None = None,
    cpus: int | None = None,
    watcher: Watcher = lambda _: None,
) -> Summary:
    """Retry everything that failed in OUT, by its own recipe or another. Raises as `ingest`."""
    with Scratch() as scratch, lock_catalog(open_dataset(out), scratch.path) as catalog:
        stored = stored_recipe(catalog)
        recipe = load_recipe(recipe_file) if recipe_file else stored
        check_geometry(recipe, stored, out)
        listing = source_list.write(_failed_sources(catalog), None, scratch.path / "listing.parquet")
        blueprint = add_weights(Blueprint.for_ingest(recipe, merge_manifest_columns(listing, catalog, recipe)))
        ledger = Ledger(catalog, blueprint, listing, retry=True)
        return _run_and_summarize(catalog, blueprint, ledger, scratch.path, address, cpus, watcher)


def annotate(
    out: str,
    annotator: str,
    *,
    retry: bool = False,
    address: str | None = None,
    cpus: int | None = None,
    watcher: Watcher = lambda _: None,
) -> Summary:
    """Add one layer to the stored clips of OUT: what an annotator makes, under the same clip ids.

    An annotator that needs others reads their output from the base layer. Clips that have the layer from this version
    of the annotator are skipped, and so are those for which it failed, unless `retry`. Raises as `ingest`.
    """
    with Scratch() as scratch, lock_catalog(open_dataset(out), scratch.path) as catalog:
        recipe = stored_recipe(catalog)
        if annotator in recipe.annotators:
            raise UsageError(f"{annotator!r} is part of this dataset's recipe already; a layer adds something new.")
        blueprint = add_weights(Blueprint.for_layer(recipe, annotator))
        check_foundations(catalog, blueprint)
        return _run_and_summarize(
            catalog, blueprint, Ledger(catalog, blueprint, retry=retry), scratch.path, address, cpus, watcher
        )


def add_weights(blueprint: Blueprint) -> Blueprint:
    """Add the weights that the user names to a blueprint, for a run.

    Raises `UsageError` when a weight is missing here or damaged.
    """
    annotators = [name for stage in blueprint.stages for name in stage]
    detector = TransNet.weights if blueprint.recipe.shots == TransNet.name else ()
    for weight in (*detector, *registry.collect_weights(annotators, blueprint.filters).values()):
        try:
            path(weight)
        except MissingWeights as error:
            raise UsageError(str(error)) from error
    return blueprint.with_weights()


def merge_manifest_columns(listing: Listing, catalog: Catalog, recipe: Recipe) -> tuple[str, ...]:
    """The manifest columns of this listing, and those of earlier ones that the dataset has."""
    return tuple(dict.fromkeys([*listing.manifest, *manifest_columns(catalog, recipe)]))


def _run_and_summarize(
    catalog: Catalog,
    blueprint: Blueprint,
    ledger: Ledger,
    scratch: Path,
    address: str | None,
    cpus: int | None,
    watcher: Watcher,
) -> Summary:
    started = time.monotonic()
    run = Run(catalog, blueprint, ledger, scratch)
    run.execute(address, cpus, watcher)
    ledger.refresh()
    return Summary(
        out=catalog.out.url,
        layer=blueprint.layer,
        run_id=run.id,
        clips=ledger.count_clips(),
        sources=ledger.count_sources(),
        done=dict(run.clip_counts),
        wall_s=time.monotonic() - started,
        startup_s=run.progress.first_start_s - started if run.progress.first_start_s else 0.0,
        seconds=dict(run.timings),
    )


def _failed_sources(catalog: Catalog) -> Iterator[Source]:
    """The sources that failed, or of which a clip did, with their manifest columns."""
    rows = catalog.connect().sql(
        f"SELECT * EXCLUDE ({', '.join(quote_name(name) for name in COLUMNS.names if name not in _SOURCE)}) "
        f"FROM sources WHERE {IS_FAILED} OR source_uri IN (SELECT source_uri FROM clips WHERE {IS_FAILED}) "
        "ORDER BY source_uri"
    )
    for batch in rows.to_arrow_reader(BATCH):
        for row in batch.to_pylist():
            uri, size, stamp, licence = (row.pop(name) for name in _SOURCE)
            # The remaining columns are the manifest's, and signals, which a source has none of.
            extra = {name: str(value) for name, value in row.items() if value is not None}
            yield Source(uri, size, stamp, extra | ({"licence": licence} if licence else {}))
