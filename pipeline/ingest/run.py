"""One run over one OUT, from claim to last commit: rounds of the Ray plan, and the only code that commits."""

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
from pipeline.engine.engine import Engine, ray_errors, trim_memory
from pipeline.engine.progress import Progress
from pipeline.engine.rounds import drain_on_stop, read_ahead, run_rounds
from pipeline.errors import RunError
from pipeline.formats.schema import BASE_LAYER, Kind, Status
from pipeline.ingest import graph
from pipeline.recipe.blueprint import Blueprint
from pipeline.stages.item import ClipItem, Item, SourceItem
from pipeline.stop import Stop

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
        self.clip_counts: Counter[str] = Counter()

    def execute(self, address: str | None, cpus: int | None, watchers: Any) -> None:
        """Claim OUT, supersede what rules or manifest change, do the work, commit. `watchers(progress)` runs often.

        Raises `RunError` when the run cannot continue, or is stopped before everything is settled.
        """
        # Before anything is written: a recipe that cannot judge the stored clips must not become that of OUT.
        revised = self._ledger.revise() if self._blueprint.layer == BASE_LAYER else iter(())
        self._commit_run()
        finish_forgetting(self._catalog)
        swept = sweep(self._catalog)
        if swept:
            log.info("removed %d unfinished files of earlier runs", len(swept))
        for table in revised:
            self._catalog.commit(table)
        self._ledger.refresh()
        if self._ledger.count_work():
            self._run_rounds(address, cpus, watchers)
        self._commit_run(finished=utc_now())
        sweep(self._catalog)

    def _run_rounds(self, address: str | None, cpus: int | None, watchers: Any) -> None:
        limits = self._blueprint.recipe.limits
        with (
            Engine(address, cpus, self._scratch / "contents.sqlite", limits.worker_deaths) as engine,
            drain_on_stop() as stop,
        ):
            # Only once: the coordinator sees what this run adds as it happens.
            contents = self._ledger.contents()

            def run_round() -> None:
                for pairs in contents:
                    engine.add_owners(pairs)
                self._run_round(engine, stop, watchers)

            def read_state() -> tuple[int, int]:
                self._ledger.refresh()
                # A source that fails again is no longer work, and a new one can settle without reducing the work.
                work, settled = self._ledger.count_work(), self._ledger.count_settled()
                self.progress.work = max(self.progress.work, work)
                self.progress.finished = self.progress.work - work
                return work, settled

            run_rounds(engine, stop, run_round, self._ledger.count_work, read_state, "sources or clips got no verdict")

    def _run_round(self, engine: Engine, stop: Stop, watchers: Any) -> None:
        """One pass of the plan over the remaining work; what it finished is committed however it ends."""
        commit = self._blueprint.recipe.commit
        group = _Group()
        packing: deque[Any] = deque()
        early: _Early = {}
        loss: Exception | None = None
        try:
            chunks = self._ledger.chunks(engine.round_size)
            with closing(read_ahead(graph.run_plan(engine, self._blueprint, self._catalog.out, chunks))) as blocks:
                for settled_block in blocks:
                    watchers(self.progress)
                    if stop.requested:
                        # Repeated, because the coordinator forgets it if its process dies.
                        self.progress.draining = True
                        engine.drain()
                    if settled_block is not None:
                        block, size, future = settled_block
                        self.progress.first_start_s = self.progress.first_start_s or engine.read_first_start_s()
                        (item,) = engine.wait_for(future)
                        self._add_item(group, early, block, size, item)
                    aged = group.rows and (stop.requested or time.monotonic() - group.since >= commit.every_s)
                    if aged or group.size >= commit.shard_mb * 1e6:
                        packing.append(self._write_group(engine, group))
                        group = _Group()
                    while packing and (len(packing) > PACKING or engine.is_ready(packing[0])):
                        self._commit_items(engine.wait_for(packing.popleft()))
        except ray_errors() as error:
            loss = error
        if group.rows:
            packing.append(self._write_group(engine, group))
        while packing:
            try:
                self._commit_items(engine.wait_for(packing.popleft()))
            except ray_errors() as error:
                loss = error
            watchers(self.progress)
        if loss is not None:
            raise loss

    def _write_group(self, engine: Engine, group: _Group) -> Any:
        return graph.write_shards(engine, self._blueprint, self._catalog.out, self.id, group.blocks)

    def _add_item(self, group: _Group, early: _Early, block: Any, size: int, item: Item) -> None:
        """Add a settled item to the group to be written, unless it was accepted before (a retried task)."""
        uri, status = item.record["source_uri"], item.record["status"]
        if isinstance(item, SourceItem):
            if not self._ledger.accept_source(uri):
                return
            group.add(block, size)
            self.progress.finished += 1
            if status == Status.FAILED:
                self.progress.failed_sources += 1
            for waiting in early.pop(uri, []):
                self._add_item(group, early, *waiting)
            return
        accepted = self._ledger.accept_clip(uri, item.record["clip_id"])
        if accepted is None:
            # A source's row is committed before its clips.
            early.setdefault(uri, []).append((block, size, item))
        elif accepted:
            group.add(block, size)
            # A stored clip, which is a piece of work like a source, is one of a layer or has a place already.
            if self._blueprint.layer != BASE_LAYER or item.record.get("shard"):
                self.progress.finished += 1
            self.progress.clips[status] += 1

    def _commit_run(self, finished: str | None = None) -> None:
        """Commit the row of this run."""
        row: dict[str, object] = {"kind": Kind.RUN, "recipe": self._blueprint.recipe.text, "timings": []}
        row |= {"version": pipeline.version(), "started": self._started, "finished": finished}
        self._commit_rows([row])

    def _commit_items(self, items: list[Item]) -> None:
        """Commit the rows of packed items. Raises `RunError` when what workers wrote cannot be seen from here."""
        clips = [item.record for item in items if isinstance(item, ClipItem)]
        for name in {name for clip in clips for name in (clip.get("shard"), clip.get("preview_shard")) if name}:
            if not self._catalog.out.exists(name):
                raise RunError(
                    f"{name} was written, but cannot be seen in {self._catalog.out.url} from here: OUT must "
                    "be one place for every node, a bucket or a shared disk."
                )
        self.clip_counts.update(clip["status"] for clip in clips)
        rows = []
        for item in items:
            timings = item.record.get("timings", {})
            self.timings.update(timings)
            rows.append(item.columns() | {"timings": list(timings.items())})
        self._commit_rows(rows)

    def _commit_rows(self, rows: list[dict[str, object]]) -> None:
        stamp = {"layer": self._blueprint.layer, "run_id": self.id, "recipe_hash": self._blueprint.recipe.hash}
        self._catalog.commit(pa.Table.from_pylist([row | stamp for row in rows], schema=self._schema))
        trim_memory()


# Clips that came before their source's row: uri -> (block, its size, clip).
_Early = dict[str, list[tuple[Any, int, ClipItem]]]


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
