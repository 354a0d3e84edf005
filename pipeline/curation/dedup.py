"""Finds near duplicates in a pass over everything committed: embed what is new, compare all, write what changed.

Clips with the same content (re-encoded, cropped, mirrored, with a logo) form a group, and one of each group is its
best: a kept one before a pending one, so that taking only the best loses nothing that is in use; then the one with the
most source pixels; then the highest `sharpness`, the lowest `noise` and the lowest `blockiness`, as far as they were
measured; then the smallest clip id. All of it follows from the clips alone, whatever order they came in.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

import pipeline
from annotators.networks.picture_embedding import SIZE, ClipEmbedding
from pipeline.catalog.catalog import BATCH, Catalog, new_run_id, open_dataset, utc_now, values
from pipeline.catalog.cleanup import sweep
from pipeline.catalog.dataset import lock_catalog, stored_recipe
from pipeline.catalog.erase import finish_forgetting
from pipeline.catalog.predicates import FORGOTTEN_CLIPS_QUERY, IS_STORED_CLIP, layer_sql
from pipeline.curation import similarity
from pipeline.curation.embedding_run import Embedder
from pipeline.engine.progress import Progress, Watcher
from pipeline.engine.rounds import drain_on_stop
from pipeline.errors import StoppedError, UsageError
from pipeline.formats import embeddings
from pipeline.formats.records import LineageEntry
from pipeline.formats.schema import BASE_LAYER, COLUMNS, DUPLICATES, DUPLICATES_LAYER, Kind, Status
from pipeline.recipe import registry
from pipeline.stop import Stop
from pipeline.storage.scratch import Scratch

THRESHOLD = 0.85
"""The least cosine of two clips that show the same. Of 67 real files those that share nothing reach up to 0.74; copies
fall to 0.98 (a tenth cropped off, re-encoded) and 0.86 (damaged by a codec)."""

# Unreadable clips that are listed; more are counted. A dataset that lost its disk has millions of them.
_MAX_LISTED = 20
# Columns that the rows repeat of their clip, as those of any layer do.
_CLIP = ("clip_id", "source_uri", "source_hash", "start_s", "end_s", "width", "height", "fps", "frames", "licence")
# The better a clip, the earlier: see the top of this file.
_QUALITY = {"sharpness": "DESC", "noise": "ASC", "blockiness": "ASC"}


@dataclass(frozen=True, slots=True)
class Summary:
    """The result of a pass: clips that were embedded now, compared, and are not the best of their group (`duplicates`);
    groups; rows written, which are only those that changed; and clips left out because they could not be read
    (id -> why)."""

    out: str
    run_id: str
    threshold: float
    embedded: int
    compared: int
    groups: int
    duplicates: int
    changed: int
    unreadable: dict[str, str]
    wall_s: float


def dedup(
    out: str,
    *,
    threshold: float = THRESHOLD,
    address: str | None = None,
    cpus: int | None = None,
    watcher: Watcher = lambda _: None,
) -> Summary:
    """Find the near duplicates among the stored clips of OUT; clips that have an embedding are not embedded again.

    `threshold`: the least cosine of clips that show the same. The rest is as in `ingest`, errors included.
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"the threshold {threshold:g} must be above 0 and at most 1")
    started, stamp, run_id = time.monotonic(), utc_now(), new_run_id()
    with Scratch() as scratch, lock_catalog(open_dataset(out), scratch.path) as catalog:
        recipe = stored_recipe(catalog)
        run = {"kind": Kind.RUN, "layer": DUPLICATES_LAYER, "run_id": run_id, "version": pipeline.version()}
        run |= {"started": stamp, "detail": f"near duplicates: a cosine of {threshold:g} and more"}
        catalog.commit(pa.Table.from_pylist([run], schema=COLUMNS))
        finish_forgetting(catalog)
        sweep(catalog)
        con = catalog.connect()
        # An older run that was still alive may have written some after they were removed.
        forgotten = values(con, FORGOTTEN_CLIPS_QUERY)
        embeddings.forget(catalog.out, (row["clip_id"] for row in forgotten))
        embedder = Embedder(con, catalog.out, run_id, recipe, scratch.path, watcher)
        with drain_on_stop() as stop:
            embedder.run(address, cpus, stop)
            compared = _compare_clips(con, catalog, threshold, scratch.path, watcher, stop)
        # In one part, so that no two rows call a clip both the best and a duplicate.
        rows = pa.concat_tables([COLUMNS.empty_table(), *_find_changed_rows(con, run_id)])
        if rows.num_rows:
            catalog.commit(rows)
        catalog.commit(pa.Table.from_pylist([run | {"finished": utc_now()}], schema=COLUMNS))
        sweep(catalog)
        groups, members = con.execute("SELECT count(*), coalesce(sum(size), 0)::BIGINT FROM clip_group").fetchall()[0]
        return Summary(
            out=catalog.out.url,
            run_id=run_id,
            threshold=threshold,
            embedded=embedder.embedded,
            compared=compared,
            groups=groups,
            duplicates=members - groups,
            changed=rows.num_rows,
            unreadable=embedder.unreadable,
            wall_s=time.monotonic() - started,
        )


def _compare_clips(
    con: duckdb.DuckDBPyConnection, catalog: Catalog, threshold: float, scratch: Path, watcher: Watcher, stop: Stop
) -> int:
    """Make the tables `compared` (a row per clip), `clip_group` and `member`; returns how many clips."""
    con.execute(
        "CREATE TABLE compared AS SELECT row_number() OVER (ORDER BY clip_id) - 1 AS position, clip_id, "
        "dense_rank() OVER (ORDER BY source_hash) AS source, "
        f"row_number() OVER (ORDER BY {_quality_order(con)}) AS rank FROM clips "
        f"WHERE {IS_STORED_CLIP} AND clip_id IN (FROM embedded)"
    )
    clips = con.sql("SELECT clip_id, source, rank FROM compared ORDER BY position").to_arrow_table()
    vectors = embeddings.load(catalog.out, ClipEmbedding.version, clips["clip_id"], SIZE, scratch / "vectors")
    sources = clips["source"].to_numpy()
    progress = Progress("pairs", work=len(vectors) * (len(vectors) - 1) // 2)

    def near_pairs() -> Iterator[pa.Table]:
        for count, pairs in similarity.find_near_pairs(vectors, sources, threshold):
            progress.finished += count
            watcher(progress)
            if stop.requested:
                raise StoppedError("stopped on request; the embeddings are kept, and the next `dedup` compares them")
            yield pairs

    chains = similarity.form_groups(similarity.find_matches(con, near_pairs()), sources)
    groups = similarity.split_around_best(chains, clips["rank"].to_numpy(), vectors, threshold)
    rows = [
        {"position": position, "number": number, "cosine": cosine}
        for number, (group, cosines) in enumerate(groups)
        for position, cosine in zip(group, cosines.tolist(), strict=True)
    ]
    kinds = pa.schema([("position", pa.int64()), ("number", pa.int64()), ("cosine", pa.float64())])
    con.register("member_rows", pa.Table.from_pylist(rows, schema=kinds))
    con.execute("CREATE TABLE member AS FROM member_rows")
    con.execute(
        "CREATE TABLE clip_group AS SELECT number, min(clip_id) AS name, arg_min(position, rank) AS best, "
        "arg_min(clip_id, rank) AS best_clip, count(*) AS size FROM member JOIN compared USING (position) "
        "GROUP BY number"
    )
    return len(vectors)


def _quality_order(con: duckdb.DuckDBPyConnection) -> str:
    """SQL for the order of clips, best first; null (not measured) comes last."""
    described = values(con, "SELECT column_name, column_type FROM (DESCRIBE clips)")
    measured = {row["column_name"] for row in described if row["column_type"] == "DOUBLE"}
    # "kept" comes before "pending".
    order = ["status", "source_width * source_height DESC NULLS LAST"]
    order += [f"{name} {direction} NULLS LAST" for name, direction in _QUALITY.items() if name in measured]
    return ", ".join([*order, "clip_id"])


def _find_changed_rows(con: duckdb.DuckDBPyConnection, run_id: str) -> Iterator[pa.Table]:
    """The rows of the layer that differ from the stored ones.

    A clip that is no longer compared (it is rejected now) gets an empty row, and one that cannot be read gets one that
    says why.
    """
    columns = ("status", "code", "detail", *DUPLICATES)
    old, new = (", ".join(f"{table}.{name}" for name in columns) for table in ("old", "new"))
    rows = con.sql(
        f"WITH new AS (SELECT c.clip_id, '{Status.COMPARED}' AS status, NULL AS code, NULL AS detail, "
        "g.name AS duplicate_group, "
        "CASE WHEN c.position <> g.best THEN g.best_clip END AS duplicate_of, coalesce(g.size, 1) AS duplicates, "
        "CASE WHEN c.position <> g.best THEN m.cosine END AS duplicate_similarity, "
        f"'{ClipEmbedding.version}' AS version FROM compared c "
        "LEFT JOIN member m USING (position) LEFT JOIN clip_group g USING (number) "
        f"UNION ALL SELECT clip_id, '{Status.FAILED}', code, detail, NULL, NULL, NULL, NULL, NULL FROM unreadable "
        f"UNION ALL SELECT clip_id, '{Status.COMPARED}', NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM clips "
        f"WHERE {layer_sql(DUPLICATES_LAYER)} AND clip_id NOT IN (SELECT clip_id FROM compared) "
        "AND clip_id NOT IN (SELECT clip_id FROM unreadable)) "
        f"SELECT {', '.join(f'base.{name}' for name in _CLIP)}, {new}, new.version AS vdot_version FROM new "
        f"JOIN clips base ON base.clip_id = new.clip_id AND {layer_sql(BASE_LAYER, 'base.')} "
        f"LEFT JOIN clips old ON old.clip_id = new.clip_id AND {layer_sql(DUPLICATES_LAYER, 'old.')} "
        f"WHERE ({old}, old.lineage[1].version) IS DISTINCT FROM ({new}, new.version) ORDER BY base.clip_id"
    )
    entry: LineageEntry = {
        "name": DUPLICATES_LAYER,
        "version": ClipEmbedding.version,
        **registry.describe_weights(ClipEmbedding.weights),
    }
    stamp = {"kind": Kind.CLIP, "layer": DUPLICATES_LAYER, "run_id": run_id}
    for batch in rows.to_arrow_reader(BATCH):
        records = [stamp | row | {"lineage": [entry] if row.pop("vdot_version") else None} for row in batch.to_pylist()]
        for row in records:
            row["stage"] = "embed" if row["status"] == Status.FAILED else None
        yield pa.Table.from_pylist(records, schema=COLUMNS)


def format_summary(result: Summary) -> str:
    """The result in sentences."""
    text = (
        f"{result.out}: compared {result.compared} clips ({result.embedded} of them new): {result.groups} groups of "
        f"near duplicates, in which {result.duplicates} clips are not the best"
    )
    unreadable = [
        f"left out, as it cannot be read: clip {clip}: {reason}" for clip, reason in sorted(result.unreadable.items())
    ]
    overflow = [f"... and {len(unreadable) - _MAX_LISTED} more"] if len(unreadable) > _MAX_LISTED else []
    return "\n".join([text, *unreadable[:_MAX_LISTED], *overflow])
