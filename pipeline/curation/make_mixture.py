"""Make a mixture: from a YAML that people write, over one dataset or more, to a pinned list of what is drawn.

    datasets:
      films: {path: films, where: "luma > 60"}       # or `selection: day1`; `sequence: 17` pins an older state
      web: {path: "s3://bucket/web", weight: 2}
    tasks: {text: 40%, depth: 2, pose: 1}            # shares in %, and weights that divide the rest
    clips_per_source: 20
    caption_dropout: 0.1
    held_out: 0.02
    seed: 7
    step: {micro_batches: 8, tokens: 65520}          # of one bucket each; ranks divide them; at most so many tokens

A share can also follow from how many clips there are: `tasks: [text, depth, pose]` with `temperature: 2` gives each
the share count^(1/2). Clips of one source, and clips that show the same (`vdot-data dedup`), are never divided between
training and the held-out part.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import duckdb
import pyarrow as pa
from pydantic import Field, model_validator

from pipeline.catalog import clip_table
from pipeline.catalog.catalog import Catalog, check_no_dataset, open_dataset
from pipeline.catalog.dataset import stored_recipe
from pipeline.curation.continue_mixture import begins as take_over
from pipeline.curation.held_out import held_out
from pipeline.curation.select import saved
from pipeline.curation.shares import task_shares
from pipeline.errors import UsageError, did_you_mean
from pipeline.formats.schema import BASE_LAYER
from pipeline.formats.strict_yaml import StrictModel, parse_mapping, read_text, validate
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
_MOST = 65_536


class Part(StrictModel):
    """One dataset of a mixture, and what of it is drawn."""

    path: str
    where: str | tuple[str, ...] = ()
    selection: str | None = None
    sequence: Annotated[int, Field(ge=1)] | None = None
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0


class Definition(StrictModel):
    """The YAML; see the top of this file."""

    datasets: Annotated[dict[str, Part], Field(min_length=1)]
    tasks: dict[str, Annotated[float, Field(strict=True, allow_inf_nan=False)] | str] | tuple[str, ...]
    temperature: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    clips_per_source: Annotated[int, Field(ge=1)] | None = None
    caption_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    seed: int = 0
    step: Step = Step()

    @model_validator(mode="after")
    def _shares_or_temperature(self) -> Definition:
        if not self.tasks:
            raise ValueError("tasks: name at least one")
        twice = [] if isinstance(self.tasks, dict) else [task for task, n in Counter(self.tasks).items() if n > 1]
        if twice:
            raise ValueError(f"tasks: {twice[0]!r} is named twice")
        if isinstance(self.tasks, dict) and self.temperature is not None:
            raise ValueError("temperature: the tasks have shares already; give `tasks` as a list, or no temperature")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks."""
        return tuple(self.tasks)


@dataclass(frozen=True, slots=True)
class Count:
    """Of one task: its share, its clips and seconds of video to train on, sources, clips held out, and how often each
    clip is drawn while those of the task drawn least often are drawn once."""

    task: str
    share: float
    clips: int
    seconds: float
    sources: int
    held_out: int
    passes: float


@dataclass(frozen=True, slots=True)
class Bucket:
    """Clips of one shape, to train on."""

    width: int
    height: int
    frames: int
    references: int
    clips: int


@dataclass(frozen=True, slots=True)
class Mixed:
    """What a mixture holds; `selected` are the clips per dataset that it may draw, `steps` those in which each clip
    comes once on average or oftener, `begins` its first position, `warnings` what to mind."""

    hash: str
    selected: dict[str, int]
    tasks: list[Count]
    buckets: list[Bucket]
    steps: int
    micro_batches: int
    begins: int
    warnings: list[str]
    out: str | None

    def as_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))


def mix(file: Path, out: str | None = None, after: str | None = None) -> Mixed:
    """Make the mixture that `file` describes; write it into the folder `out`, if there is one.

    Paths in the file are relative to its folder. `after`, as in `demo/mixed@4800`: it takes over from that mixture at
    that position. Raises `UsageError` for a file that is no mixture,
    an unknown column, selection or task, shares that cannot be had, and an `out` that holds another mixture.
    """
    name = f"mixture {file}"
    given = validate(Definition, parse_mapping(read_text(file, "mixture"), name), name)
    warnings: list[str] = []
    con = duckdb.connect()
    if out:
        check_no_dataset(Folder(out))
    with Scratch() as scratch:
        pools, datasets = [], {}
        made_of: dict[str, tuple[str, ...]] = {}
        for dataset, part in given.datasets.items():
            url = part.path if "://" in part.path else str(file.parent / part.path)
            catalog = Catalog(open_dataset(url), scratch.path / dataset)
            sequence = part.sequence or catalog.sequence
            if sequence > catalog.sequence:
                raise UsageError(f"{name}: {url} has {catalog.sequence} catalog parts, and no part {sequence}")
            datasets[dataset] = (catalog.out.url, sequence)
            pools.append(_pool(catalog, dataset, part, sequence))
            if pools[-1].uncompared and given.held_out:
                warnings.append(
                    f"{dataset}: {pools[-1].uncompared} clips were not compared by `vdot-data dedup`; copies of those "
                    "held out may be among those to train on"
                )
            if pools[-1].dropped:
                warnings.append(
                    f"{dataset}: {pools[-1].dropped} clips of the selection {part.selection!r} are not kept in the "
                    "dataset, and are left out; `vdot-data ingest` with the recipe that selected them brings them in"
                )
            for task, found in stored_recipe(catalog, sequence).parts.items():
                if task in given.names and made_of.setdefault(task, found) != found:
                    raise UsageError(f"{name}: {dataset} makes the task {task!r} of other parts than the others do")
    if len(pools) > 1 and given.held_out:
        warnings.append("clips of one dataset were never compared with those of another: copies may lie in both parts")
    con.register("given", pa.concat_tables(pool.clips for pool in pools))
    con.execute("CREATE TABLE clip AS FROM given")
    con.register("pairs", pa.concat_tables(pool.pairs for pool in pools))
    selected = dict.fromkeys(datasets, 0) | dict(
        con.execute("SELECT dataset, count(*) FROM clip GROUP BY ALL").fetchall()
    )
    _check_tasks(given, con, name)
    _split(given, con, name)
    _cap(given, con)
    shares, streams = _streams(given, con, name)
    samples = con.sql(
        f"SELECT {', '.join(map(quote_name, SCHEMA.names))} FROM (SELECT * EXCLUDE tasks FROM clip) "
        "JOIN drawn USING (dataset, clip_id) ORDER BY dataset, clip_id"
    )
    table = samples.to_arrow_table().cast(SCHEMA)
    parts = {task: made_of.get(task, (task,)) for task in given.names}
    mixture = Mixture(
        compute_digest(table), given.seed, given.caption_dropout, given.step, StartPoint(), datasets, parts, streams
    )
    order = Order(mixture, table)
    _sound(order, given.step, name)
    begins = take_over(after, order, table) if after else StartPoint()
    mixture = replace(mixture, begins=begins)
    warnings += _small(order, given.step)
    counts = _counts(con, shares)
    written = write(mixture, table, out) if out else None
    steps = order.steps_per_epoch, given.step.micro_batches, begins.position
    return Mixed(mixture.hash, selected, counts, _buckets(con), *steps, warnings, written)


@dataclass(frozen=True, slots=True)
class _Pool:
    """What a part of the mixture may draw, and the (source, group of near duplicates) pairs of all that its dataset
    holds; how many of its clips were never compared, and how many of a selection it cannot draw."""

    clips: pa.Table
    pairs: pa.Table
    uncompared: int
    dropped: int


def _pool(catalog: Catalog, dataset: str, part: Part, sequence: int) -> _Pool:
    con = catalog.connect(upto=sequence)
    where = [part.where] if isinstance(part.where, str) else list(part.where)
    measured = [name for name in ("ref_pictures",) if name in clip_table.list_columns(con)]
    needed = ("source_hash", "duplicates", "start_s", "end_s", "tasks", "frames", "height", "width")
    clip_table.create(
        con, "pool", dict.fromkeys([*needed, *measured, *clip_table.resolve_columns(where, con)]), "status = 'kept'"
    )
    clip_table.check_predicates(where, "pool", con)
    dropped = 0
    if part.selection is not None:
        con.register("selected_ids", saved(catalog.out, part.selection))
        ((dropped,),) = con.execute(
            "SELECT count(*) FROM (FROM selected_ids EXCEPT SELECT clip_id FROM pool)"
        ).fetchall()
        where.append("clip_id IN (FROM selected_ids)")
    # Of two layers with a member of one name the newer one counts, so it comes last.
    con.execute(
        'CREATE TABLE places AS SELECT clip_id, list(struct_pack(layer, shard, "offset", bytes, crc32) '
        f"ORDER BY layer <> {quote_text(BASE_LAYER)}, sequence) AS places FROM clips "
        "WHERE shard IS NOT NULL AND status = 'kept' GROUP BY clip_id"
    )
    references = f"coalesce({measured[0]}, 0)::BIGINT" if measured else "0::BIGINT"
    try:
        con.execute(
            f"CREATE TABLE drawn AS SELECT {quote_text(dataset)} AS dataset, clip_id, source_hash, "
            f'end_s - start_s AS seconds, tasks, frames, height, width, {references} AS "references", places, '
            f"duplicates FROM pool JOIN places USING (clip_id) "
            f"WHERE {' AND '.join(f'({one}{chr(10)})' for one in where) or 'true'}"
        )
    except duckdb.Error as error:
        raise UsageError(f"where: cannot be evaluated on the values that are there: {first_line(error)}") from error
    _check_shards(catalog.out, con)
    # Of all that the dataset holds: two films are copies though one of each pair of clips may not be drawn.
    pairs = con.sql(
        f"SELECT DISTINCT b.source_hash, {quote_text(dataset + ' ')} || d.duplicate_group AS duplicate_group "
        f"FROM clips b JOIN clips d USING (clip_id) WHERE b.layer = {quote_text(BASE_LAYER)} "
        "AND d.duplicate_group IS NOT NULL"
    ).to_arrow_table()
    ((uncompared,),) = con.execute("SELECT count(*) FILTER (duplicates IS NULL) FROM drawn").fetchall()
    clips = con.sql("SELECT * EXCLUDE duplicates FROM drawn").to_arrow_table()
    return _Pool(clips, pairs, uncompared, dropped)


def _check_shards(out: Folder, con: duckdb.DuckDBPyConnection) -> None:
    """Raises `UsageError` where a shard is gone: newer rows took its place, and it was swept."""
    rows = con.execute("SELECT DISTINCT unnest(places).shard FROM drawn").fetchall()
    needed = {shard for (shard,) in rows}
    folders = {shard.rpartition("/")[0] for shard in needed}
    there = {f"{folder}/{entry.name}" for folder in folders for entry in out.list_files(folder)}
    gone = sorted(needed - there)
    if gone:
        raise UsageError(
            f"{out.url} lacks {len(gone)} shards that its catalog names, as {gone[0]}. If `sequence` is an older one, "
            "its clips were made anew since: take a newer one. Else `verify --mark-failed` and `retry` mend it"
        )


def _check_tasks(given: Definition, con: duckdb.DuckDBPyConnection, name: str) -> None:
    fit = dict(
        con.execute(
            "SELECT task, count(*) FROM (SELECT unnest(tasks) AS task FROM clip) GROUP BY task ORDER BY task"
        ).fetchall()
    )
    for task in given.names:
        if task not in fit:
            told = ", ".join(f"{one} {count}" for one, count in fit.items()) or "none for any task"
            near = did_you_mean(task, fit).partition("; there are")[0]
            raise UsageError(f"{name}: no selected clip is fit for the task {task!r}{near} (fit are: {told})")


def _split(given: Definition, con: duckdb.DuckDBPyConnection, name: str) -> None:
    """Add `split` to the table `clip`."""
    drawn = [source for (source,) in con.execute("SELECT DISTINCT source_hash FROM clip").fetchall()]
    held = held_out(con.execute("FROM pairs ORDER BY ALL").fetchall(), drawn, given.held_out, given.seed)
    if given.held_out and not held:
        raise UsageError(
            f"{name}: held_out {given.held_out:g} of {len(drawn)} sources leaves none; raise it, or take another seed"
        )
    con.register("held", pa.table({"source_hash": pa.array(sorted(held), pa.string())}))
    con.execute(
        f"CREATE OR REPLACE TABLE clip AS SELECT *, CASE WHEN source_hash IN (FROM held) THEN '{HELD_OUT}' "
        f"ELSE '{TRAIN}' END AS split FROM clip"
    )


def _cap(given: Definition, con: duckdb.DuckDBPyConnection) -> None:
    """Make `fit`, a row per clip and task that are drawn, and `drawn`, the tasks of each clip."""
    con.register("wanted", pa.table({"task": list(given.names)}))
    most = "" if given.clips_per_source is None else f"<= {given.clips_per_source}"
    order = f"md5('{given.seed} ' || clip_id), dataset"
    cap = f"QUALIFY row_number() OVER (PARTITION BY source_hash, task ORDER BY {order}) {most}"
    con.execute(
        "CREATE TABLE fit AS FROM (SELECT * EXCLUDE tasks, unnest(tasks) AS task FROM clip) "
        f"WHERE task IN (FROM wanted) {cap if most else ''}"
    )
    con.execute(
        "CREATE TABLE drawn AS SELECT dataset, clip_id, list(task ORDER BY task) AS tasks FROM fit GROUP BY ALL"
    )


def _streams(
    given: Definition, con: duckdb.DuckDBPyConnection, name: str
) -> tuple[dict[str, Fraction], tuple[Stream, ...]]:
    """The share of each task, and of each dataset in it."""
    rows = con.execute(
        f"SELECT task, dataset, count(*) FILTER (split = '{TRAIN}'), count(*) FROM fit GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    train: Counter[str] = Counter()
    every: Counter[str] = Counter()
    for task, _, count, fit in rows:
        train[task] += count
        every[task] += fit
    for task in given.names:
        if not train[task]:
            raise UsageError(f"{name}: the task {task!r} has no clip to train on: all {every[task]} are held out")
    shares = task_shares(given.tasks, given.temperature, train, name)
    streams = []
    for task in given.names:
        counts = {dataset: count for one, dataset, count, _ in rows if one == task and count}
        parts = {dataset: Fraction(str(given.datasets[dataset].weight)) * count for dataset, count in counts.items()}
        streams += [
            Stream(dataset, task, count, shares[task] * parts[dataset] / sum(parts.values()))
            for dataset, count in counts.items()
        ]
    return shares, tuple(streams)


def _counts(con: duckdb.DuckDBPyConnection, shares: Mapping[str, Fraction]) -> list[Count]:
    rows = con.execute(
        f"SELECT task, count(*) FILTER (split = '{TRAIN}'), sum(seconds) FILTER (split = '{TRAIN}'), "
        f"count(DISTINCT source_hash) FILTER (split = '{TRAIN}'), count(*) FILTER (split = '{HELD_OUT}') "
        "FROM fit GROUP BY task"
    ).fetchall()
    clips = {task: count for task, count, *_ in rows}
    least = min(share / clips[task] for task, share in shares.items())
    found = {
        task: Count(task, float(shares[task]), count, seconds, sources, held, float(shares[task] / count / least))
        for task, count, seconds, sources, held in rows
    }
    return [found[task] for task in shares]


def _buckets(con: duckdb.DuckDBPyConnection) -> list[Bucket]:
    rows = con.execute(
        'SELECT width, height, frames, "references", count(*) FROM clip JOIN drawn USING (dataset, clip_id) '
        f"WHERE split = '{TRAIN}' GROUP BY ALL ORDER BY 5 DESC, 1, 2, 3, 4"
    ).fetchall()
    return [Bucket(*row) for row in rows]


def _sound(order: Order, step: Step, name: str) -> None:
    """Raises UsageError for steps that no machine could hold."""
    largest = min(order.buckets, key=lambda one: one.tokens)
    clips = step.count_clips(largest.tokens)
    if max(clips, step.micro_batches) > _MOST:
        raise UsageError(
            f"{name}: step: {step.micro_batches} micro-batches of up to {clips} clips ({largest.task} {largest.width}x"
            f"{largest.height}, {largest.frames} frames, {largest.tokens} tokens each); {_MOST} of either are the most"
        )


def _small(order: Order, step: Step) -> list[str]:
    """A warning where buckets have fewer clips than a step of them draws."""
    small = [one for one in order.buckets if order.count_clips(one) < step.micro_batches * step.count_clips(one.tokens)]
    if not small:
        return []
    least = min(small, key=order.count_clips)
    told = (
        f"{len(small)} of {len(order.buckets)} buckets have fewer clips than a step of them draws, so that clips come "
        f"several times in a step; the smallest: {least.task} {least.width}x{least.height}, {least.frames} frames, "
        f"{least.references} references, with {order.count_clips(least)}"
    )
    return [told]
