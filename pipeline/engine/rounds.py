"""Rounds until nothing is left: what a lost node or worker cost is done in the next one, and a stop is heeded.

A round takes as much work as the driver can remember (`Engine.round`). It is followed by another, which asks what is
missing, and so is one that lost something beyond Ray's repair. So it ends when everything is settled, or when rounds
get nowhere.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.engine.engine import LOST, Engine, reason
from pipeline.errors import RunError, StoppedError

log = logging.getLogger("vdot_data")

# Rounds in a row that may end without getting anywhere before the run gives up.
FRUITLESS = 2


def rounds(
    engine: Engine, stop: Stop, once: Callable[[], None], left: Callable[[], int], state: Callable[[], Any], what: str
) -> None:
    """Call `once`, one round, until nothing is `left` or `stop` is asked for.

    `state` looks at what there is, before the first round and after each: one that leaves it as it was got nowhere.
    Raises `RunError` when too many did so in a row, with the count and `what` of it in words; when a worker raised
    one; and when the stop came first.
    """
    fruitless, last, before = 0, "no worker could be started", state()
    while (work := left()) and not stop.asked:
        try:
            engine.fresh()
            once()
        except LOST as error:
            fatal = reason(error)
            if fatal is not None:
                raise fatal from error
            last = (str(error).strip() or type(error).__name__).splitlines()[-1]
            log.warning("part of the cluster was lost; going on with what is missing: %s", last)
        after = state()
        fruitless, before = fruitless + 1 if after == before else 0, after
        if fruitless > FRUITLESS:
            raise RunError(
                f"{work} {what} in {fruitless} rounds ({last}). `vdot-data doctor` checks the nodes; what was "
                "committed is kept."
            )
    if work:
        raise StoppedError(
            "stopped on request; everything finished is committed, and the same command goes on from here."
        )


class Stop:
    """SIGTERM and Ctrl-C ask the run to drain; the second one ends the process at once, with exit status 1."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: object) -> None:
        # Not by the console, which may be in the middle of a line of its own.
        if self.asked:
            os.write(2, b"\nvdot-data: stopped at once; what was committed is kept\n")
            os._exit(1)
        self.asked = True
        os.write(2, b"\nstopping: what is in hand is finished; once more stops at once\n")

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
