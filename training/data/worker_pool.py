"""Worker processes that prepare micro-batches ahead of a trainer; whatever becomes of one, the order stays the same.

They are started with exec and share nothing but a socket with the trainer: no lock, no queue thread, nothing in
/dev/shm.
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

# Micro-batches in hand for each worker, done ones among them: one at work and one that waits for the trainer; more of
# small ones, up to so many bytes together, so that a worker need not be woken for each.
_FEWEST, _MOST, _BYTES = 2, 16, 32 << 20
_LOG = logging.getLogger(__name__)
# A micro-batch that killed so many workers is not given to another.
_DEATHS = 3


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    sock: socket.socket
    receiver: shared_memory.Receiver
    ready: bool = False
    tickets: list[int] = field(default_factory=list)


class Crew:
    """Takes micro-batches to be prepared, and gives each when it is asked for. Not for several threads."""

    def __init__(self, size: int, settings: Settings, cache: tuple[str, int] | None) -> None:
        """`cache`: folder and bound in bytes of each worker's."""
        # What this process told fsspec of stores, a worker would not know.
        self._told = [asdict(settings), cache, fsspec.config.conf]
        try:
            json.dumps(self._told)
        except TypeError as error:
            raise UsageError(f"fsspec.config.conf cannot be told to workers: {error}; or take workers=0") from error
        self._work: dict[int, list[Clip]] = {}
        self._waiting: deque[int] = deque()
        self._done: dict[int, tuple[dict[str, Any], list[Array]]] = {}
        self._deaths: Counter[int] = Counter()
        self._stillborn = 0
        self._tickets = count()
        self._sizes: dict[int, int] = {}
        self._poll = select.poll()
        self._workers = [self._started() for _ in range(size)]
        self.close = weakref.finalize(self, _end, self._workers, os.getpid())
        """Ends the workers; called when the crew is forgotten, too."""

    def look(self) -> None:
        """See what workers have sent, without waiting."""
        self._collect(0)

    def room(self, size: int) -> bool:
        """Whether to have one more prepared, of about so many bytes: what was asked for and not taken is bounded."""
        ready = sum(one.ready for one in self._workers)
        small = sum(self._sizes.values()) + size <= _BYTES * ready
        return len(self._work) < (_MOST if small else _FEWEST) * ready

    def ask(self, clips: Sequence[Clip], size: int) -> int:
        """Have a micro-batch of about `size` bytes prepared; what `take` knows it by."""
        ticket = next(self._tickets)
        self._work[ticket], self._sizes[ticket] = list(clips), size
        self._waiting.append(ticket)
        self._hand_out()
        return ticket

    def take(self, ticket: int) -> Contents:
        """What a worker made of a micro-batch; waits for it.

        Raises RunError where storage keeps failing, and for one at which workers die, naming its clips.
        """
        while ticket not in self._done:
            self._collect(None)
        del self._work[ticket], self._sizes[ticket]
        header, arrays = self._done.pop(ticket)
        if "error" in header:
            raise RunError(header["error"])
        of = iter(arrays)
        together = {name: next(of) for name in header["arrays"]}
        items = tuple({name: next(of) for name in names} for names in header["items"])
        damaged = {int(number): why for number, why in header["damaged"].items()}
        return Contents(damaged, tuple(header["captions"]), header["unfit"], together, items)

    def drop(self, ticket: int) -> None:
        """Forget a micro-batch that nobody will take."""
        for known in (self._work, self._sizes, self._done):
            known.pop(ticket, None)
        if ticket in self._waiting:
            self._waiting.remove(ticket)

    def _hand_out(self) -> None:
        ready = [worker for worker in self._workers if worker.ready]
        while self._waiting and ready:
            worker = min(ready, key=lambda one: len(one.tickets))
            ticket = self._waiting.popleft()
            worker.tickets.append(ticket)
            told = [[getattr(clip, name) for name in Clip.__slots__] for clip in self._work[ticket]]
            try:
                shared_memory.tell(worker.sock, [ticket, told, worker.receiver.released()])
            except OSError:
                # It is gone, which `_collect` finds out; not at these clips, of which it never heard.
                self._waiting.appendleft(worker.tickets.pop())
                return

    def _collect(self, timeout_ms: int | None) -> None:
        """Receive what workers have sent; waits for something if `timeout_ms` is None."""
        sent = {number for number, _ in self._poll.poll(timeout_ms)}
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
        """A new worker for one that died; what it had in hand comes first."""
        self._poll.unregister(worker.sock)
        worker.sock.close()
        status = worker.process.wait()
        left = [ticket for ticket in worker.tickets if ticket in self._work]
        _LOG.warning("a worker of the stream ended with status %s; another takes its place", status)
        if left:
            clips = ", ".join(f"{clip.clip_id} ({clip.places[0].shard})" for clip in self._work[left[0]])
            self._deaths[left[0]] += 1
            if self._deaths[left[0]] == _DEATHS:
                # Told to whoever takes it.
                told = f"{_DEATHS} workers died (the last with status {status}) at the same clips: {clips}"
                self._done[left.pop(0)] = {"error": told}, []
        self._stillborn = 0 if worker.ready else self._stillborn + 1
        if self._stillborn == _DEATHS:
            raise RunError(f"{_DEATHS} workers ended before they could begin, the last with status {status}; see above")
        self._waiting.extendleft(reversed(left))
        self._workers[self._workers.index(worker)] = self._started()

    def _started(self) -> _Worker:
        worker = _start(self._told)
        self._poll.register(worker.sock, select.POLLIN)
        return worker


def _start(told: list[Any]) -> _Worker:
    ours, theirs = socket.socketpair()
    # The same modules as this process has; "" stands for the folder that it is in.
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "training.data.worker", str(theirs.fileno()), str(os.getpid())],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            # Ctrl-C in a terminal is the trainer's to answer.
            process_group=0,
        )
    shared_memory.tell(ours, told)
    return _Worker(process, ours, shared_memory.Receiver(ours))


def _end(workers: list[_Worker], owner: int) -> None:
    if os.getpid() != owner:
        # A fork of the trainer's, to which the workers do not belong.
        return
    for worker in workers:
        # Not only closed: a fork may still hold the socket.
        with suppress(OSError):
            worker.sock.shutdown(socket.SHUT_RDWR)
        worker.sock.close()
    for worker in workers:
        worker.process.wait()
