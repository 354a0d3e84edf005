"""One run over one OUT, from claim to last commit: rounds of the Ray plan, and the only hand that commits.

A round that loses something (a node, a worker beyond Ray's repair) is followed by another one, which asks the ledger
what is missing. So a run ends when everything listed is settled, or when a round gets nowhere.
"""

from __future__ import annotations

import logging
import queue
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

import pipeline
from pipeline.blueprint import Blueprint
from pipeline.catalog import Catalog, now
from pipeline.engine import LOST, MAX_CHUNKS, Engine, reason
from pipeline.erase import finish_forgetting
from pipeline.errors import RunError
from pipeline.ledger import Ledger
from pipeline.schema import BASE_LAYER
from pipeline.sweep import sweep

log = logging.getLogger("vdot_data")

# Rounds in a row that may end without a single new verdict before the run gives up.
FRUITLESS = 2
# Shards being written at once: enough to hide an object store's latency, few enough to bound memory.
PACKING = 4


@dataclass(slots=True)
class Progress:
    """What a display shows while a run goes on: `done` of `work` pieces, which are sources, or a layer's clips."""

    unit: str
    work: int = 0
    done: int = 0
    clips: Counter[str] = field(default_factory=Counter)
    started: float = field(default_factory=time.monotonic)
    begun: float | None = None
    draining: bool = False


class Run:
    """Everything that one run holds: the catalog of OUT, the blueprint, the ledger and the progress."""

    def __init__(self, catalog: Catalog, blueprint: Blueprint, ledger: Ledger, scratch: Path) -> None:
        self._catalog, self._blueprint, self._ledger, self._scratch = catalog, blueprint, ledger, scratch
        self.id = ledger.run_id
        self._schema = blueprint.schema()
        self._started = now()
        self.progress = Progress("sources" if blueprint.layer == BASE_LAYER else "stored clips")
        self.timings: Counter[str] = Counter()
        self.done: Counter[str] = Counter()

    def go(self, address: str | None, cpus: int | None, watchers: Any) -> None:
        """Claim OUT, supersede what rules or manifest change, do the work, commit. `watchers(progress)` runs often.

        Raises `RunError` when the run cannot go on, or was asked to stop before everything was settled.
        """
        # Before anything is written: a recipe that cannot judge what is there must not become that of OUT.
        revised = self._ledger.revised() if self._blueprint.layer == BASE_LAYER else iter(())
        self._commit_rows([self._row_of_run()])
        finish_forgetting(self._catalog)
        swept = sweep(self._catalog)
        if swept:
            log.info("removed %d unfinished files of earlier runs", len(swept))
        for table in revised:
            self._catalog.commit(table)
        self._ledger.refresh()
        if self._ledger.work():
            self._rounds(address, cpus, watchers)
        self._commit_rows([self._row_of_run() | {"finished": now()}])
        sweep(self._catalog)

    def _rounds(self, address: str | None, cpus: int | None, watchers: Any) -> None:
        fruitless = 0
        limits = self._blueprint.recipe.limits
        with (
            Engine(address, cpus, self._catalog.out, self._scratch / "contents.sqlite", limits.worker_deaths) as engine,
            Stop() as stop,
        ):
            while self._ledger.work() and not stop.asked:
                work, settled = self._ledger.work(), self._ledger.settled()
                self.progress.work = work
                self.progress.done = 0
                last = "no worker could be started"
                try:
                    engine.fresh()
                    for pairs in self._ledger.contents():
                        engine.own(pairs)
                    self._round(engine, stop, watchers)
                except LOST as error:
                    fatal = reason(error)
                    if fatal is not None:
                        raise fatal from error
                    last = str(error).strip().splitlines()[-1]
                    log.warning("part of the cluster was lost; going on with what is missing: %s", last)
                self._ledger.refresh()
                # A source that fails again is no work any more, and a new one settles without being less work.
                gained = self._ledger.work() < work or self._ledger.settled() > settled
                fruitless = 0 if gained else fruitless + 1
                if fruitless > FRUITLESS:
                    raise RunError(
                        f"{self._ledger.work()} sources or clips got no verdict in {fruitless} rounds ({last}). "
                        "`vdot-data doctor` checks the nodes; what was committed is kept."
                    )
        if stop.asked and self._ledger.work():
            raise RunError(
                "stopped on request; everything finished is committed, and the same command goes on from here."
            )

    def _round(self, engine: Engine, stop: Stop, watchers: Any) -> None:
        """One pass of the plan over the work that is left; what it finished is committed however it ends."""
        commit = self._blueprint.recipe.commit
        group = _Group()
        packing: deque[Any] = deque()
        early: _Early = {}
        lost: Exception | None = None
        try:
            with closing(ahead(engine.run(self._blueprint, self._ledger.chunks(MAX_CHUNKS)))) as blocks:
                for arrived in blocks:
                    watchers(self.progress)
                    if stop.asked:
                        # Said again and again: the watch forgets it if its process dies.
                        self.progress.draining = True
                        engine.drain()
                    if arrived is not None:
                        self.progress.begun = self.progress.begun or engine.begun()
                        block, size, future = arrived
                        (record,) = engine.result(future)
                        self._take(group, early, block, size, record)
                    aged = group.rows and (stop.asked or time.monotonic() - group.since >= commit.every_s)
                    if aged or group.size >= commit.shard_mb * 1e6:
                        packing.append(engine.pack(self._blueprint, self.id, group.blocks))
                        group = _Group()
                    while packing and (len(packing) > PACKING or engine.ready(packing[0])):
                        self._commit_rows(engine.result(packing.popleft()))
        except LOST as error:
            lost = error
        if group.rows:
            packing.append(engine.pack(self._blueprint, self.id, group.blocks))
        while packing:
            try:
                self._commit_rows(engine.result(packing.popleft()))
            except LOST as error:
                lost = error
            watchers(self.progress)
        if lost is not None:
            raise lost

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


class Stop:
    """SIGTERM and Ctrl-C ask the run to drain; the second one stops the process at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def ahead(blocks: Iterator[Any]) -> Generator[Any]:
    """The blocks from a thread of their own, with None twice a second in between, so that time is noticed."""
    waiting: queue.Queue[Any] = queue.Queue(maxsize=64)
    left = threading.Event()

    def read() -> None:
        for block in blocks:
            while not left.is_set():
                try:
                    waiting.put(block, timeout=0.5)
                    break
                except queue.Full:
                    continue
            if left.is_set():
                return

    with ThreadPoolExecutor(1, "plan") as pool:
        reader = pool.submit(read)
        try:
            while not (reader.done() and waiting.empty()):
                try:
                    yield waiting.get(timeout=0.5)
                except queue.Empty:
                    yield None
        finally:
            # Of a run that failed: the thread must end before Ray does, with the block that it waits for.
            left.set()
        reader.result()
