"""A pool of worker processes that prepare micro-batches ahead of a trainer; failed workers never change the order.

They are started with exec and share only a socket with the trainer: no lock, no queue thread, nothing in /dev/shm.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import subprocess
import sys
import weakref
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import fsspec.config

from pipeline.errors import RunError, UsageError
from training.data import shared_memory
from training.data.clip_loader import Clip, Contents, Settings
from training.data.shared_memory import Array

# Pending micro-batches for each worker, including finished ones: one in work and one waiting for the trainer; more if
# they are small, up to this many bytes together, so that a worker need not be woken for each.
_MIN_PENDING, _MAX_PENDING, _MAX_BYTES = 2, 16, 32 << 20
_LOG = logging.getLogger(__name__)
# A micro-batch at which this many workers died is not retried.
_DEATHS = 3


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    sock: socket.socket
    receiver: shared_memory.Receiver
    ready: bool = False
    tickets: list[int] = field(default_factory=list)


class WorkerPool:
    """Prepares submitted micro-batches in worker processes until they are taken. Not thread-safe."""

    def __init__(self, size: int, settings: Settings, cache: tuple[str, int] | None) -> None:
        """`cache`: folder and byte limit of each worker's cache."""
        # Workers need this process's fsspec configuration of stores.
        self._setup = [asdict(settings), cache, fsspec.config.conf]
        try:
            json.dumps(self._setup)
        except TypeError as error:
            raise UsageError(
                f"fsspec.config.conf cannot be sent to workers ({error}): simplify it, or use workers=0"
            ) from error
        self._work: dict[int, list[Clip]] = {}
        self._waiting: deque[int] = deque()
        self._done: dict[int, tuple[dict[str, Any], list[Array]]] = {}
        self._deaths: Counter[int] = Counter()
        self._failed_starts = 0
        self._tickets = count()
        self._sizes: dict[int, int] = {}
        self._poller = select.poll()
        self._workers = [self._start_worker() for _ in range(size)]
        self.close = weakref.finalize(self, _end, self._workers, os.getpid())
        """Stops the workers; also called when the pool is garbage-collected."""

    def collect(self) -> None:
        """Receive finished micro-batches, without waiting."""
        self._collect(0)

    def has_room(self, size: int) -> bool:
        """Whether there is room for another micro-batch of about `size` bytes: pending ones are bounded."""
        ready = sum(worker.ready for worker in self._workers)
        small = sum(self._sizes.values()) + size <= _MAX_BYTES * ready
        return len(self._work) < (_MAX_PENDING if small else _MIN_PENDING) * ready

    def submit(self, clips: Sequence[Clip], size: int) -> int:
        """Submit a micro-batch of about `size` bytes; returns its ticket for `take`."""
        ticket = next(self._tickets)
        self._work[ticket], self._sizes[ticket] = list(clips), size
        self._waiting.append(ticket)
        self._hand_out()
        return ticket

    def take(self, ticket: int) -> Contents:
        """The contents of a submitted micro-batch; waits for it.

        Raises RunError if storage keeps failing, or if workers keep dying at it, naming its clips.
        """
        while ticket not in self._done:
            self._collect(None)
        del self._work[ticket], self._sizes[ticket]
        header, arrays = self._done.pop(ticket)
        if "error" in header:
            raise RunError(header["error"])
        remaining = iter(arrays)
        stacked = {name: next(remaining) for name in header["arrays"]}
        items = tuple({name: next(remaining) for name in names} for names in header["items"])
        damaged = {int(number): reason for number, reason in header["damaged"].items()}
        return Contents(damaged, tuple(header["captions"]), header["latents_unusable_reason"], stacked, items)

    def cancel(self, ticket: int) -> None:
        """Forget a micro-batch that will not be taken."""
        for table in (self._work, self._sizes, self._done):
            table.pop(ticket, None)
        if ticket in self._waiting:
            self._waiting.remove(ticket)

    def _hand_out(self) -> None:
        ready = [worker for worker in self._workers if worker.ready]
        while self._waiting and ready:
            worker = min(ready, key=lambda candidate: len(candidate.tickets))
            ticket = self._waiting.popleft()
            worker.tickets.append(ticket)
            fields = [[getattr(clip, name) for name in Clip.__slots__] for clip in self._work[ticket]]
            try:
                shared_memory.send_message(worker.sock, [ticket, fields, worker.receiver.take_released()])
            except OSError:
                # It died before it got these clips; `_collect` will notice.
                self._waiting.appendleft(worker.tickets.pop())
                return

    def _collect(self, timeout_ms: int | None) -> None:
        """Receive what workers have sent; waits for a message if `timeout_ms` is None."""
        sent = {number for number, _ in self._poller.poll(timeout_ms)}
        for worker in [worker for worker in self._workers if worker.sock.fileno() in sent]:
            try:
                header, arrays = worker.receiver.receive()
            except (EOFError, ConnectionError):
                self._replace(worker)
                continue
            if header == "ready":
                worker.ready = True
                continue
            worker.tickets.remove(header["ticket"])
            if header["ticket"] in self._work:
                self._done[header["ticket"]] = header, arrays
        self._hand_out()

    def _replace(self, worker: _Worker) -> None:
        """Replace a worker that died; its micro-batches are retried first."""
        self._poller.unregister(worker.sock)
        worker.sock.close()
        status = worker.process.wait()
        tickets = [ticket for ticket in worker.tickets if ticket in self._work]
        _LOG.warning("a worker of the stream ended with status %s; another takes its place", status)
        if tickets:
            clips = ", ".join(f"{clip.clip_id} ({clip.places[0].shard})" for clip in self._work[tickets[0]])
            self._deaths[tickets[0]] += 1
            if self._deaths[tickets[0]] == _DEATHS:
                # Raised by `take`.
                message = f"{_DEATHS} workers died (the last with status {status}) at the same clips: {clips}"
                self._done[tickets.pop(0)] = {"error": message}, []
        self._failed_starts = 0 if worker.ready else self._failed_starts + 1
        if self._failed_starts == _DEATHS:
            raise RunError(f"{_DEATHS} workers ended before they were ready, the last with status {status}; see above")
        self._waiting.extendleft(reversed(tickets))
        self._workers[self._workers.index(worker)] = self._start_worker()

    def _start_worker(self) -> _Worker:
        worker = _start(self._setup)
        self._poller.register(worker.sock, select.POLLIN)
        return worker


def _start(setup: list[Any]) -> _Worker:
    parent_end, child_end = socket.socketpair()
    # The same modules as in this process; "" stands for its current folder.
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    with child_end:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "training.data.worker", str(child_end.fileno()), str(os.getpid())],
            pass_fds=[child_end.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            # Ctrl-C in a terminal is left to the trainer.
            process_group=0,
        )
    shared_memory.send_message(parent_end, setup)
    return _Worker(process, parent_end, shared_memory.Receiver(parent_end))


def _end(workers: list[_Worker], owner: int) -> None:
    if os.getpid() != owner:
        # A fork of the trainer, which does not own the workers.
        return
    for worker in workers:
        # Closing is not enough: a fork may still hold the socket.
        with suppress(OSError):
            worker.sock.shutdown(socket.SHUT_RDWR)
        worker.sock.close()
    for worker in workers:
        worker.process.wait()
