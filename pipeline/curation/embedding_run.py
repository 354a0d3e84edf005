"""Every stored clip gets its embedding: rounds of a Ray plan of one stage, whose results go into parts of the table.

What is missing is asked of the table itself, so that a pass that was killed goes on where its last part ended.
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

from annotators.networks.picture_embedding import Likeness
from annotators.weights import MissingWeights, path
from pipeline.engine.engine import Engine, Pool, give_back
from pipeline.engine.progress import Progress, Watcher
from pipeline.engine.rounds import Stop, ahead, rounds
from pipeline.errors import UsageError
from pipeline.formats import embeddings
from pipeline.formats.schema import BASE_LAYER
from pipeline.recipe.recipe import Recipe
from pipeline.stages.embed import EmbedStage
from pipeline.storage.folder import Folder

# Rows of one part: about 10 MB.
PART = 4096
# Clips that go through Ray together: one takes a fraction of a second.
_TOGETHER = 16
STORED = f"layer = '{BASE_LAYER}' AND status IN ('kept', 'pending') AND shard IS NOT NULL"
"""Which rows of the view `clips` have bytes to be embedded and compared."""


@dataclass(slots=True)
class Embedder:
    """One pass over the clips that have no embedding by this version of the model yet.

    `con` is a connection of the catalog's; it gets the table `embedded` of clip ids. After `go`, `done` is the number
    of new embeddings and `unreadable` says of each clip that has none why.
    """

    con: duckdb.DuckDBPyConnection
    out: Folder
    run_id: str
    recipe: Recipe
    scratch: Path
    watcher: Watcher
    done: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    _parts: int = 0

    def go(self, address: str | None, cpus: int | None, stop: Stop) -> None:
        """Embed what is missing; Ray starts only if anything is. Raises `RunError` when that cannot go on,
        `UsageError` when the network is not on this machine."""
        self.con.execute("CREATE TABLE embedded (clip_id VARCHAR)")
        self.con.execute("CREATE TABLE unreadable (clip_id VARCHAR, code VARCHAR, detail VARCHAR)")
        for ids in embeddings.read_ids(self.out, Likeness.version):
            self._settle("embedded", pa.table({"clip_id": ids}))
        self.con.execute(
            f'CREATE VIEW missing AS SELECT clip_id, shard, "offset", bytes FROM clips WHERE {STORED} '
            "AND clip_id NOT IN (FROM embedded) AND clip_id NOT IN (SELECT clip_id FROM unreadable)"
        )
        if self._missing():
            try:
                path(*Likeness.weights)
            except MissingWeights as error:
                raise UsageError(str(error)) from error
            deaths = self.recipe.limits.worker_deaths
            progress = Progress("embeddings", work=self._missing())
            with Engine(address, cpus, self.scratch / "contents.sqlite", deaths) as engine:
                once = partial(self._round, engine, stop, progress)
                rounds(engine, stop, once, self._missing, self._missing, "clips got no embedding")

    def _round(self, engine: Engine, stop: Stop, progress: Progress) -> None:
        found: list[pa.Table] = []
        since = time.monotonic()
        try:
            chunks = [*self._chunks(engine.round * _TOGETHER)]
            workers = engine.workers(len(chunks))
            pool = Pool(EmbedStage, (self.out, engine.attempts), workers, workers, in_flight=2)
            with closing(ahead(engine.map(pool, chunks))) as tables:
                for table in tables:
                    self.watcher(progress)
                    if stop.asked:
                        progress.draining = True
                        engine.drain()
                    if table is not None:
                        found.append(table)
                        progress.done += table.num_rows
                    if sum(map(len, found)) >= PART or time.monotonic() - since >= self.recipe.commit.every_s:
                        self._write(found)
                        found, since = [], time.monotonic()
        finally:
            self._write(found)

    def _write(self, found: list[pa.Table]) -> None:
        """Put what came into a part; a clip that failed is no work any more in this pass."""
        if not found:
            return
        rows = pa.concat_tables(found)
        failed = rows.filter(pc.is_valid(rows["code"])).select(["clip_id", "code", "detail"])
        self.unreadable |= {row["clip_id"]: f"{row['code']}: {row['detail']}" for row in failed.to_pylist()}
        self._settle("unreadable", failed)
        sound = rows.filter(pc.is_null(rows["code"])).select(["clip_id", "embedding"])
        if sound.num_rows:
            embeddings.append_part(self.out, self.run_id, self._parts, Likeness.version, sound)
            self._parts += 1
            self.done += sound.num_rows
            self._settle("embedded", sound.select(["clip_id"]))
        give_back()

    def _settle(self, table: str, rows: pa.Table) -> None:
        self.con.register("given_rows", rows)
        self.con.execute(f"INSERT INTO {table} FROM given_rows")
        self.con.unregister("given_rows")

    def _chunks(self, most: int) -> Iterator[pa.Table]:
        # In the order in which they lie in the shards.
        rows = self.con.cursor().sql(f'FROM missing ORDER BY shard, "offset" LIMIT {most}')
        for batch in rows.to_arrow_reader(_TOGETHER):
            yield pa.Table.from_batches([batch])

    def _missing(self) -> int:
        ((count,),) = self.con.execute("SELECT count(*) FROM missing").fetchall()
        return int(count)
