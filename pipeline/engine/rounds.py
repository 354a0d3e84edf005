"""Repeats rounds of work until nothing is left, so that the next one does what a lost node or worker cost.

A round takes as much work as the driver can remember (`Engine.round_size`). The next one takes what is missing, whether
the last one ended or lost something beyond Ray's repair. A run ends when everything is settled, when rounds make no
progress, or on a stop request.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.engine.engine import Engine, find_run_error, ray_errors
from pipeline.errors import RunError, StoppedError
from pipeline.stop import Stop, exit_at_once

log = logging.getLogger("vdot_data")

# Rounds in a row that may end without progress before the run gives up.
FRUITLESS = 2


def run_rounds(
    engine: Engine,
    stop: Stop,
    run_round: Callable[[], None],
    count_work: Callable[[], int],
    read_state: Callable[[], Any],
    problem: str,
) -> None:
    """Call `run_round` until `count_work` returns 0 or `stop` is requested.

    `read_state` is called before the first round and after each: one that leaves the state as it was made no progress.
    Raises `RunError` after too many such rounds in a row, with the work left and the `problem` in words; when a worker
    raised one; and when the stop came first.
    """
    fruitless, last_error, before = 0, "no worker could be started", read_state()
    while (work := count_work()) and not stop.requested:
        try:
            engine.begin_round()
            run_round()
        except ray_errors() as error:
            fatal = find_run_error(error)
            if fatal is not None:
                raise fatal from error
            last_error = (str(error).strip() or type(error).__name__).splitlines()[-1]
            log.warning("part of the cluster was lost; continuing with what is missing: %s", last_error)
        after = read_state()
        fruitless, before = fruitless + 1 if after == before else 0, after
        if fruitless > FRUITLESS:
            raise RunError(
                f"{work} {problem} in {fruitless} rounds ({last_error}). `vdot-data doctor` checks the nodes; what was "
                "committed is kept."
            )
    if work:
        raise StoppedError("stopped on request; everything finished is committed, and the same command resumes here.")


def drain_on_stop() -> Stop:
    """A request to stop for a run in rounds: a second signal ends the process at once, with exit status 1."""
    return Stop(exit_at_once, "stopping: work in progress is finished; a second signal stops at once")


def read_ahead(blocks: Iterator[Any]) -> Generator[Any]:
    """The blocks, read by a thread, with None in between twice a second so that the caller can watch the time."""
    buffer: queue.Queue[Any] = queue.Queue(maxsize=64)
    abandoned = threading.Event()

    def read() -> None:
        for block in blocks:
            while not abandoned.is_set():
                try:
                    buffer.put(block, timeout=0.5)
                    break
                except queue.Full:
                    continue
            if abandoned.is_set():
                return

    with ThreadPoolExecutor(1, "plan") as pool:
        reader = pool.submit(read)
        try:
            while not (reader.done() and buffer.empty()):
                try:
                    yield buffer.get(timeout=0.5)
                except queue.Empty:
                    yield None
        finally:
            # When the run failed: the thread must end before Ray does, with the block that it waits for.
            abandoned.set()
        reader.result()
