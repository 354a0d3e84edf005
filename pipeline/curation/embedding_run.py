"""Embeds every stored clip: rounds of a Ray plan of one stage, with results written into parts of the table.

The table itself says what is missing, so a pass that was killed resumes where its last part ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from annotators.networks.picture_embedding import ClipEmbedding
from annotators.weights import MissingWeights, path
from pipeline.catalog.predicates import IS_STORED_CLIP
from pipeline.engine.engine import Engine, Pool, trim_memory
from pipeline.engine.progress import Progress, Watcher
from pipeline.engine.rounds import read_ahead, run_rounds
from pipeline.errors import UsageError
from pipeline.formats import embeddings
from pipeline.recipe.recipe import Recipe
from pipeline.stages.embed import EmbedStage
from pipeline.stop import Stop
from pipeline.storage.folder import Folder

# Rows of one part: about 10 MB.
PART = 4096
# Clips that go through Ray as one chunk: one takes a fraction of a second.
_CHUNK = 16


@dataclass(slots=True)
class Embedder:
    """One pass over the clips that have no embedding by this version of the model yet.

    `con` is a connection of the catalog's; it gets the table `embedded` of clip ids. After `run`, `embedded` is the
    number of new embeddings, and `unreadable` says why a clip has none.
    """

    con: duckdb.DuckDBPyConnection
    out: Folder
    run_id: str
    recipe: Recipe
    scratch: Path
    watcher: Watcher
    embedded: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    _parts: int = 0

    def run(self, address: str | None, cpus: int | None, stop: Stop) -> None:
        """Embed what is missing; Ray starts only if anything is. Raises `RunError` when it cannot continue,
        `UsageError` when the network is not on this machine."""
        self.con.execute("CREATE TABLE embedded (clip_id VARCHAR)")
        self.con.execute("CREATE TABLE unreadable (clip_id VARCHAR, code VARCHAR, detail VARCHAR)")
        for ids in embeddings.read_ids(self.out, ClipEmbedding.version):
            self._insert_rows("embedded", pa.table({"clip_id": ids}))
        self.con.execute(
            f'CREATE VIEW missing AS SELECT clip_id, shard, "offset", bytes FROM clips WHERE {IS_STORED_CLIP} '
            "AND clip_id NOT IN (FROM embedded) AND clip_id NOT IN (SELECT clip_id FROM unreadable)"
        )
        if self._count_missing():
            try:
                path(*ClipEmbedding.weights)
            except MissingWeights as error:
                raise UsageError(str(error)) from error
            deaths = self.recipe.limits.worker_deaths
            progress = Progress("embeddings", work=self._count_missing())
            with Engine(address, cpus, self.scratch / "contents.sqlite", deaths) as engine:
                run_round = partial(self._run_round, engine, stop, progress)
                run_rounds(engine, stop, run_round, self._count_missing, self._count_missing, "clips got no embedding")

    def _run_round(self, engine: Engine, stop: Stop, progress: Progress) -> None:
        results: list[pa.Table] = []
        since = time.monotonic()
        try:
            chunks = [*self._read_chunks(engine.round_size * _CHUNK)]
            workers = engine.count_workers(len(chunks))
            pool = Pool(EmbedStage, (self.out, engine.attempts), workers, workers, in_flight=2)
            with closing(read_ahead(engine.map_tables(pool, chunks))) as tables:
                for table in tables:
                    self.watcher(progress)
                    if stop.requested:
                        progress.draining = True
                        engine.drain()
                    if table is not None:
                        results.append(table)
                        progress.finished += table.num_rows
                    if sum(map(len, results)) >= PART or time.monotonic() - since >= self.recipe.commit.every_s:
                        self._write_part(results)
                        results, since = [], time.monotonic()
        finally:
            self._write_part(results)

    def _write_part(self, results: list[pa.Table]) -> None:
        """Write results into a part; a clip that failed is not tried again in this pass."""
        if not results:
            return
        rows = pa.concat_tables(results)
        failed = rows.filter(pc.is_valid(rows["code"])).select(["clip_id", "code", "detail"])
        self.unreadable |= {row["clip_id"]: f"{row['code']}: {row['detail']}" for row in failed.to_pylist()}
        self._insert_rows("unreadable", failed)
        sound = rows.filter(pc.is_null(rows["code"])).select(["clip_id", "embedding"])
        if sound.num_rows:
            embeddings.append_part(self.out, self.run_id, self._parts, ClipEmbedding.version, sound)
            self._parts += 1
            self.embedded += sound.num_rows
            self._insert_rows("embedded", sound.select(["clip_id"]))
        trim_memory()

    def _insert_rows(self, table: str, rows: pa.Table) -> None:
        self.con.register("new_rows", rows)
        self.con.execute(f"INSERT INTO {table} FROM new_rows")
        self.con.unregister("new_rows")

    def _read_chunks(self, limit: int) -> Iterator[pa.Table]:
        # In the order of their place in the shards.
        rows = self.con.cursor().sql(f'FROM missing ORDER BY shard, "offset" LIMIT {limit}')
        for batch in rows.to_arrow_reader(_CHUNK):
            yield pa.Table.from_batches([batch])

    def _count_missing(self) -> int:
        ((count,),) = self.con.execute("SELECT count(*) FROM missing").fetchall()
        return int(count)
