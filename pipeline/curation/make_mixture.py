"""Makes a mixture: from a definition over one or more datasets to a pinned list of what is drawn.

Clips of one source, and near duplicates (`vdot-data dedup`), are never divided between training and the held-out part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import duckdb
import pyarrow as pa

from pipeline.catalog import clip_table
from pipeline.catalog.catalog import Catalog, check_no_dataset, open_dataset
from pipeline.catalog.dataset import stored_recipe
from pipeline.catalog.predicates import BASE_FIRST, HAS_KEPT_SAMPLE, IS_KEPT, layer_sql
from pipeline.curation.continue_mixture import find_beginning
from pipeline.curation.held_out import choose_held_out
from pipeline.curation.mixture_definition import Definition, Part, read_definition
from pipeline.curation.select import load_selection
from pipeline.curation.shares import task_shares
from pipeline.errors import UsageError, did_you_mean
from pipeline.formats.schema import BASE_LAYER
from pipeline.mixture.mixture import (
    HELD_OUT,
    SCHEMA,
    TRAIN,
    Mixture,
    StartPoint,
    Step,
    Stream,
    compute_digest,
    write,
)
from pipeline.mixture.order import Order
from pipeline.recipe.rules import first_line, quote_name, quote_text
from pipeline.storage.folder import Folder
from pipeline.storage.scratch import Scratch

# Clips of a micro-batch, and micro-batches of a step, beyond which a number was mistyped.
_MAX_COUNT = 65_536


@dataclass(frozen=True, slots=True)
class Count:
    """Counts of one task: its share, clips and seconds of video to train on, sources, clips held out, and how often
    each clip is drawn while clips of the task drawn least often are drawn once."""

    task: str
    share: float
    clips: int
    seconds: float
    sources: int
    held_out: int
    passes: float


@dataclass(frozen=True, slots=True)
class BucketSummary:
    """Clips of one shape, to train on."""

    width: int
    height: int
    frames: int
    references: int
    clips: int


@dataclass(frozen=True, slots=True)
class MixtureSummary:
    """What a mixture holds; `selected` are the clips per dataset that it may draw, `steps` those that draw each clip
    once on average or more often, `begins` its first position."""

    hash: str
    selected: dict[str, int]
    tasks: list[Count]
    buckets: list[BucketSummary]
    steps: int
    micro_batches: int
    begins: int
    warnings: list[str]
    out: str | None


def mix(file: Path, out: str | None = None, after: str | None = None) -> MixtureSummary:
    """Make the mixture that `file` describes; write it into the folder `out`, if there is one.

    Paths in the file are relative to its folder. `after`, as in `demo/mixed@4800`: it continues that mixture from that
    position. Raises `UsageError` for a file that is not a mixture, an unknown column, selection or task, impossible
    shares, and an `out` that holds another mixture.
    """
    name = f"mixture {file}"
    definition = read_definition(file, name)
    warnings: list[str] = []
    con = duckdb.connect()
    if out:
        check_no_dataset(Folder(out))
    with Scratch() as scratch:
        pools, datasets = [], {}
        task_parts: dict[str, tuple[str, ...]] = {}
        for dataset, part in definition.datasets.items():
            url = part.path if "://" in part.path else str(file.parent / part.path)
            catalog = Catalog(open_dataset(url), scratch.path / dataset)
            sequence = part.sequence or catalog.sequence
            if sequence > catalog.sequence:
                raise UsageError(f"{name}: {url} has {catalog.sequence} catalog parts, and no part {sequence}")
            datasets[dataset] = (catalog.out.url, sequence)
            pools.append(_read_pool(catalog, dataset, part, sequence))
            if pools[-1].uncompared and definition.held_out:
                warnings.append(
                    f"{dataset}: {pools[-1].uncompared} clips were not compared by `vdot-data dedup`; copies of those "
                    "held out may be among those to train on"
                )
            if pools[-1].dropped:
                warnings.append(
                    f"{dataset}: {pools[-1].dropped} clips of the selection {part.selection!r} are not kept in the "
                    "dataset, and are left out; `vdot-data ingest` with the recipe that selected them brings them in"
                )
            for task, composition in stored_recipe(catalog, sequence).parts.items():
                if task in definition.names and task_parts.setdefault(task, composition) != composition:
                    raise UsageError(f"{name}: {dataset} makes the task {task!r} of other parts than another dataset")
    if len(pools) > 1 and definition.held_out:
        warnings.append("clips of one dataset were never compared with those of another: copies may lie in both parts")
    con.register("pooled_clips", pa.concat_tables(pool.clips for pool in pools))
    con.execute("CREATE TABLE clip AS FROM pooled_clips")
    con.register("pairs", pa.concat_tables(pool.pairs for pool in pools))
    selected = dict.fromkeys(datasets, 0) | dict(
        con.execute("SELECT dataset, count(*) FROM clip GROUP BY ALL").fetchall()
    )
    _check_tasks(definition, con, name)
    _split_clips(definition, con, name)
    _cap_clips(definition, con)
    shares, streams = _build_streams(definition, con, name)
    samples = con.sql(
        f"SELECT {', '.join(map(quote_name, SCHEMA.names))} FROM (SELECT * EXCLUDE tasks FROM clip) "
        "JOIN drawn USING (dataset, clip_id) ORDER BY dataset, clip_id"
    )
    table = samples.to_arrow_table().cast(SCHEMA)
    parts = {task: task_parts.get(task, (task,)) for task in definition.names}
    mixture = Mixture(
        compute_digest(table),
        definition.seed,
        definition.caption_dropout,
        definition.step,
        StartPoint(),
        datasets,
        parts,
        streams,
    )
    order = Order(mixture, table)
    _check_step(order, definition.step, name)
    begins = find_beginning(after, order, table) if after else StartPoint()
    mixture = replace(mixture, begins=begins)
    warnings += _warn_of_small_buckets(order, definition.step)
    counts = _count_tasks(con, shares)
    written = write(mixture, table, out) if out else None
    steps = order.steps_per_epoch, definition.step.micro_batches, begins.position
    return MixtureSummary(mixture.hash, selected, counts, _list_buckets(con), *steps, warnings, written)


@dataclass(frozen=True, slots=True)
class _Pool:
    """The clips that a part of the mixture may draw, and the (source, group of near duplicates) pairs of its whole
    dataset; how many of its clips were never compared, and how many of a selection it cannot draw."""

    clips: pa.Table
    pairs: pa.Table
    uncompared: int
    dropped: int


def _read_pool(catalog: Catalog, dataset: str, part: Part, sequence: int) -> _Pool:
    con = catalog.connect(upto=sequence)
    where = [part.where] if isinstance(part.where, str) else list(part.where)
    measured = [name for name in ("ref_pictures",) if name in clip_table.list_columns(con)]
    needed = ("source_hash", "duplicates", "start_s", "end_s", "tasks", "frames", "height", "width")
    clip_table.create(
        con, "pool", dict.fromkeys([*needed, *measured, *clip_table.resolve_columns(where, con)]), IS_KEPT
    )
    clip_table.check_predicates(where, "pool", con)
    dropped = 0
    if part.selection is not None:
        con.register("selected_ids", load_selection(catalog.out, part.selection))
        ((dropped,),) = con.execute(
            "SELECT count(*) FROM (FROM selected_ids EXCEPT SELECT clip_id FROM pool)"
        ).fetchall()
        where.append("clip_id IN (FROM selected_ids)")
    # Where two layers have a member of the same name, the newer one counts, so it comes last.
    con.execute(
        'CREATE TABLE places AS SELECT clip_id, list(struct_pack(layer, shard, "offset", bytes, crc32) '
        f"ORDER BY {BASE_FIRST}, sequence) AS places FROM clips WHERE {HAS_KEPT_SAMPLE} GROUP BY clip_id"
    )
    references = f"coalesce({measured[0]}, 0)::BIGINT" if measured else "0::BIGINT"
    try:
        con.execute(
            f"CREATE TABLE drawn AS SELECT {quote_text(dataset)} AS dataset, clip_id, source_hash, "
            f'end_s - start_s AS seconds, tasks, frames, height, width, {references} AS "references", places, '
            f"duplicates FROM pool JOIN places USING (clip_id) "
            f"WHERE {' AND '.join(f'({predicate}{chr(10)})' for predicate in where) or 'true'}"
        )
    except duckdb.Error as error:
        raise UsageError(f"where: cannot be evaluated on the values that are there: {first_line(error)}") from error
    _check_shards(catalog.out, con)
    # Of the whole dataset: two films are copies even if a clip of each pair may not be drawn.
    pairs = con.sql(
        f"SELECT DISTINCT b.source_hash, {quote_text(dataset + ' ')} || d.duplicate_group AS duplicate_group "
        f"FROM clips b JOIN clips d USING (clip_id) WHERE {layer_sql(BASE_LAYER, 'b.')} "
        "AND d.duplicate_group IS NOT NULL"
    ).to_arrow_table()
    ((uncompared,),) = con.execute("SELECT count(*) FILTER (duplicates IS NULL) FROM drawn").fetchall()
    clips = con.sql("SELECT * EXCLUDE duplicates FROM drawn").to_arrow_table()
    return _Pool(clips, pairs, uncompared, dropped)


def _check_shards(out: Folder, con: duckdb.DuckDBPyConnection) -> None:
    """Raises `UsageError` where a shard is gone: newer rows replaced it, and it was swept."""
    rows = con.execute("SELECT DISTINCT unnest(places).shard FROM drawn").fetchall()
    needed = {shard for (shard,) in rows}
    folders = {shard.rpartition("/")[0] for shard in needed}
    stored = {f"{folder}/{entry.name}" for folder in folders for entry in out.list_files(folder)}
    missing = sorted(needed - stored)
    if missing:
        raise UsageError(
            f"{out.url} lacks {len(missing)} shards that its catalog names, as {missing[0]}. If `sequence` is an older "
            "one, its clips were made again since: take a newer one. Else `verify --mark-failed` and `retry` repair it"
        )


def _check_tasks(definition: Definition, con: duckdb.DuckDBPyConnection, name: str) -> None:
    fit = dict(
        con.execute(
            "SELECT task, count(*) FROM (SELECT unnest(tasks) AS task FROM clip) GROUP BY task ORDER BY task"
        ).fetchall()
    )
    for task in definition.names:
        if task not in fit:
            listing = ", ".join(f"{fit_task} {count}" for fit_task, count in fit.items()) or "none for any task"
            hint = did_you_mean(task, fit).partition("; there are")[0]
            raise UsageError(f"{name}: no selected clip is fit for the task {task!r}{hint} (fit are: {listing})")


def _split_clips(definition: Definition, con: duckdb.DuckDBPyConnection, name: str) -> None:
    """Add `split` to the table `clip`."""
    drawn = [source for (source,) in con.execute("SELECT DISTINCT source_hash FROM clip").fetchall()]
    held = choose_held_out(
        con.execute("FROM pairs ORDER BY ALL").fetchall(), drawn, definition.held_out, definition.seed
    )
    if definition.held_out and not held:
        raise UsageError(
            f"{name}: held_out {definition.held_out:g} of {len(drawn)} sources leaves none; raise it, or take another "
            "seed"
        )
    con.register("held", pa.table({"source_hash": pa.array(sorted(held), pa.string())}))
    con.execute(
        f"CREATE OR REPLACE TABLE clip AS SELECT *, CASE WHEN source_hash IN (FROM held) THEN '{HELD_OUT}' "
        f"ELSE '{TRAIN}' END AS split FROM clip"
    )


def _cap_clips(definition: Definition, con: duckdb.DuckDBPyConnection) -> None:
    """Make the tables `fit`, a row per clip and task drawn, and `drawn`, the tasks of each clip."""
    con.register("wanted", pa.table({"task": list(definition.names)}))
    limit = "" if definition.clips_per_source is None else f"<= {definition.clips_per_source}"
    order = f"md5('{definition.seed} ' || clip_id), dataset"
    cap = f"QUALIFY row_number() OVER (PARTITION BY source_hash, task ORDER BY {order}) {limit}"
    con.execute(
        "CREATE TABLE fit AS FROM (SELECT * EXCLUDE tasks, unnest(tasks) AS task FROM clip) "
        f"WHERE task IN (FROM wanted) {cap if limit else ''}"
    )
    con.execute(
        "CREATE TABLE drawn AS SELECT dataset, clip_id, list(task ORDER BY task) AS tasks FROM fit GROUP BY ALL"
    )


def _build_streams(
    definition: Definition, con: duckdb.DuckDBPyConnection, name: str
) -> tuple[dict[str, Fraction], tuple[Stream, ...]]:
    """Compute the share of each task, and of each dataset in it."""
    rows = con.execute(
        f"SELECT task, dataset, count(*) FILTER (split = '{TRAIN}'), count(*) FROM fit GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    train: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for task, _, count, fit in rows:
        train[task] += count
        total[task] += fit
    for task in definition.names:
        if not train[task]:
            raise UsageError(f"{name}: the task {task!r} has no clip to train on: all {total[task]} are held out")
    shares = task_shares(definition.tasks, definition.temperature, train, name)
    streams = []
    for task in definition.names:
        counts = {dataset: count for row_task, dataset, count, _ in rows if row_task == task and count}
        parts = {
            dataset: Fraction(str(definition.datasets[dataset].weight)) * count for dataset, count in counts.items()
        }
        streams += [
            Stream(dataset, task, count, shares[task] * parts[dataset] / sum(parts.values()))
            for dataset, count in counts.items()
        ]
    return shares, tuple(streams)


def _count_tasks(con: duckdb.DuckDBPyConnection, shares: Mapping[str, Fraction]) -> list[Count]:
    rows = con.execute(
        f"SELECT task, count(*) FILTER (split = '{TRAIN}'), sum(seconds) FILTER (split = '{TRAIN}'), "
        f"count(DISTINCT source_hash) FILTER (split = '{TRAIN}'), count(*) FILTER (split = '{HELD_OUT}') "
        "FROM fit GROUP BY task"
    ).fetchall()
    clips = {task: count for task, count, *_ in rows}
    least_rate = min(share / clips[task] for task, share in shares.items())
    counts_by_task = {
        task: Count(task, float(shares[task]), count, seconds, sources, held, float(shares[task] / count / least_rate))
        for task, count, seconds, sources, held in rows
    }
    return [counts_by_task[task] for task in shares]


def _list_buckets(con: duckdb.DuckDBPyConnection) -> list[BucketSummary]:
    rows = con.execute(
        'SELECT width, height, frames, "references", count(*) FROM clip JOIN drawn USING (dataset, clip_id) '
        f"WHERE split = '{TRAIN}' GROUP BY ALL ORDER BY 5 DESC, 1, 2, 3, 4"
    ).fetchall()
    return [BucketSummary(*row) for row in rows]


def _check_step(order: Order, step: Step, name: str) -> None:
    """Raises UsageError for steps that no machine could hold."""
    largest = min(order.buckets, key=lambda bucket: bucket.tokens)
    clips = step.count_clips(largest.tokens)
    if max(clips, step.micro_batches) > _MAX_COUNT:
        raise UsageError(
            f"{name}: step: {step.micro_batches} micro-batches of up to {clips} clips ({largest.task} {largest.width}x"
            f"{largest.height}, {largest.frames} frames, {largest.tokens} tokens each); {_MAX_COUNT} of either are "
            "the most"
        )


def _warn_of_small_buckets(order: Order, step: Step) -> list[str]:
    """A warning where buckets have fewer clips than a step of them draws."""
    small = [
        bucket
        for bucket in order.buckets
        if order.count_clips(bucket) < step.micro_batches * step.count_clips(bucket.tokens)
    ]
    if not small:
        return []
    smallest = min(small, key=order.count_clips)
    warning = (
        f"{len(small)} of {len(order.buckets)} buckets have fewer clips than a step of them draws, so that clips come "
        f"several times in a step; the smallest: {smallest.task} {smallest.width}x{smallest.height}, "
        f"{smallest.frames} frames, {smallest.references} references, with {order.count_clips(smallest)}"
    )
    return [warning]
