"""One run over one OUT, from claim to last commit: rounds of the Ray plan, and the only hand that commits."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

import pipeline
from pipeline.catalog.catalog import Catalog, utc_now
from pipeline.catalog.cleanup import sweep
from pipeline.catalog.erase import finish_forgetting
from pipeline.catalog.ledger import Ledger
from pipeline.engine.engine import LOST, Engine, give_back
from pipeline.engine.progress import Progress
from pipeline.engine.rounds import Stop, ahead, rounds
from pipeline.errors import RunError
from pipeline.formats.schema import BASE_LAYER
from pipeline.ingest import graph
from pipeline.recipe.blueprint import Blueprint

log = logging.getLogger("vdot_data")

# Shards being written at once: enough to hide an object store's latency, few enough to bound memory.
PACKING = 4


class Run:
    """Everything that one run holds: the catalog of OUT, the blueprint, the ledger and the progress."""

    def __init__(self, catalog: Catalog, blueprint: Blueprint, ledger: Ledger, scratch: Path) -> None:
        self._catalog, self._blueprint, self._ledger, self._scratch = catalog, blueprint, ledger, scratch
        self.id = ledger.run_id
        self._schema = blueprint.schema()
        self._started = utc_now()
        self.progress = Progress("sources" if blueprint.layer == BASE_LAYER else "stored clips")
        self.timings: Counter[str] = Counter()
        self.done: Counter[str] = Counter()

    def go(self, address: str | None, cpus: int | None, watchers: Any) -> None:
        """Claim OUT, supersede what rules or manifest change, do the work, commit. `watchers(progress)` runs often.

        Raises `RunError` when the run cannot go on, or was asked to stop before everything was settled.
        """
        # Before anything is written: a recipe that cannot judge what is there must not become that of OUT.
        revised = self._ledger.revise() if self._blueprint.layer == BASE_LAYER else iter(())
        self._commit_rows([self._row_of_run()])
        finish_forgetting(self._catalog)
        swept = sweep(self._catalog)
        if swept:
            log.info("removed %d unfinished files of earlier runs", len(swept))
        for table in revised:
            self._catalog.commit(table)
        self._ledger.refresh()
        if self._ledger.count_work():
            self._rounds(address, cpus, watchers)
        self._commit_rows([self._row_of_run() | {"finished": utc_now()}])
        sweep(self._catalog)

    def _rounds(self, address: str | None, cpus: int | None, watchers: Any) -> None:
        limits = self._blueprint.recipe.limits
        with (
            Engine(address, cpus, self._scratch / "contents.sqlite", limits.worker_deaths) as engine,
            Stop() as stop,
        ):
            # Once: what this run adds, the coordinator learns as it happens.
            known = self._ledger.contents()

            def once() -> None:
                for pairs in known:
                    engine.own(pairs)
                self._round(engine, stop, watchers)

            def state() -> tuple[int, int]:
                self._ledger.refresh()
                # A source that fails again is no work any more, and a new one settles without being less work.
                work, settled = self._ledger.count_work(), self._ledger.count_settled()
                self.progress.work = max(self.progress.work, work)
                self.progress.done = self.progress.work - work
                return work, settled

            rounds(engine, stop, once, self._ledger.count_work, state, "sources or clips got no verdict")

    def _round(self, engine: Engine, stop: Stop, watchers: Any) -> None:
        """One pass of the plan over the work that is left; what it finished is committed however it ends."""
        commit = self._blueprint.recipe.commit
        group = _Group()
        packing: deque[Any] = deque()
        early: _Early = {}
        lost: Exception | None = None
        try:
            chunks = self._ledger.chunks(engine.round)
            with closing(ahead(graph.run(engine, self._blueprint, self._catalog.out, chunks))) as blocks:
                for arrived in blocks:
                    watchers(self.progress)
                    if stop.asked:
                        # Said again and again: the coordinator forgets it if its process dies.
                        self.progress.draining = True
                        engine.drain()
                    if arrived is not None:
                        self.progress.begun = self.progress.begun or engine.begun()
                        block, size, future = arrived
                        (record,) = engine.result(future)
                        self._take(group, early, block, size, record)
                    aged = group.rows and (stop.asked or time.monotonic() - group.since >= commit.every_s)
                    if aged or group.size >= commit.shard_mb * 1e6:
                        packing.append(self._write(engine, group))
                        group = _Group()
                    while packing and (len(packing) > PACKING or engine.ready(packing[0])):
                        self._commit_rows(engine.result(packing.popleft()))
        except LOST as error:
            lost = error
        if group.rows:
            packing.append(self._write(engine, group))
        while packing:
            try:
                self._commit_rows(engine.result(packing.popleft()))
            except LOST as error:
                lost = error
            watchers(self.progress)
        if lost is not None:
            raise lost

    def _write(self, engine: Engine, group: _Group) -> Any:
        return graph.write(engine, self._blueprint, self._catalog.out, self.id, group.blocks)

    def _take(
        self,
        group: _Group,
        early: _Early,
        block: Any,
        size: int,
        record: dict[str, Any],
    ) -> None:
        """Put a settled record into the group to be written, unless it came before (a retried task)."""
        record.setdefault("kind", "clip")
        new = self._ledger.accept(record)
        if new is None:
            # A source's row is committed before its clips.
            early.setdefault(record["source_uri"], []).append((block, size, record))
            return
        if not new:
            return
        group.add(block, size)
        # A piece of work is a source, or a stored clip: one of a layer, or one that has its place already.
        if record["kind"] == "source" or self._blueprint.layer != BASE_LAYER or record.get("shard"):
            self.progress.done += 1
        if record["kind"] == "source":
            if record["status"] == "failed":
                self.progress.clips["source failed"] += 1
            for held in early.pop(record["source_uri"], []):
                self._take(group, early, *held)
        else:
            self.progress.clips[record["status"]] += 1

    def _row_of_run(self) -> dict[str, Any]:
        return {
            "kind": "run",
            "recipe": self._blueprint.recipe.text,
            "version": pipeline.version(),
            "started": self._started,
        }

    def _commit_rows(self, rows: list[dict[str, Any]]) -> None:
        for name in {row[place] for row in rows for place in ("shard", "preview_shard") if row.get(place)}:
            if not self._catalog.out.exists(name):
                raise RunError(
                    f"{name} was written, but is not to be seen in {self._catalog.out.url} from here: OUT must "
                    "be one place for every node, a bucket or a shared disk."
                )
        for row in rows:
            row.setdefault("kind", "clip")
            row |= {
                "layer": self._blueprint.layer,
                "run_id": self.id,
                "recipe_hash": self._blueprint.recipe.hash,
            }
            if row["kind"] == "clip":
                self.done[row["status"]] += 1
            timings = row.get("timings") or {}
            self.timings.update(timings)
            row["timings"] = list(timings.items())
        self._catalog.commit(pa.Table.from_pylist(rows, schema=self._schema))
        give_back()


# Records that came before their source's: uri -> (block, its size, record).
_Early = dict[str, list[tuple[Any, int, dict[str, Any]]]]


@dataclass(slots=True)
class _Group:
    """Settled blocks that will be one shard and one catalog part."""

    blocks: list[Any] = field(default_factory=list)
    size: int = 0
    rows: int = 0
    since: float = 0.0

    def add(self, block: Any, size: int) -> None:
        if not self.rows:
            self.since = time.monotonic()
        self.blocks.append(block)
        self.size += size
        self.rows += 1
