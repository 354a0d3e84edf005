"""The child process of a sandbox: runs generators for its parent, and ends with it, however it ends.

Started by `pipeline.video.sandbox` as `python -m pipeline.video.sandbox_child FD_IN FD_OUT MEMORY_MB STALL_S`.
"""

from __future__ import annotations

import os
import queue
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from importlib import import_module
from typing import Any, BinaryIO

from pipeline.errors import ErrorCode, Failure, RunError, attempt
from pipeline.video.messages import pack, read, write

_END = object()
# Progress messages are this far apart, or a quarter of the time that the parent waits if that is less.
_TICK_S = 1.0


def report_progress() -> None:
    """For generators in a sandbox: tell the parent that work continues, though no item is ready yet.

    Call this whenever there is progress; it sends at most one small message a second. Outside a sandbox it does
    nothing.
    """
    if _link is not None:
        _link.tick()


class _Link:
    """The child's end of the pipe to its parent; the kernel's alarm ends a child that is silent for too long."""

    def __init__(self, pipe: BinaryIO, stall_s: float) -> None:
        self._pipe = pipe
        # longer than the parent waits: while it lives, the parent ends a hang
        self._patience_s = stall_s * 1.5 + 5
        self._tick_s = min(_TICK_S, stall_s / 4)
        self._sent_s = 0.0

    def arm(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, self._patience_s)

    def disarm(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    def send(self, message: list[memoryview | bytes]) -> None:
        # no alarm while the parent is slow to take a message
        self.disarm()
        try:
            write(self._pipe, message)
        except BrokenPipeError:
            os._exit(0)
        self._sent_s = time.monotonic()
        self.arm()

    def tick(self) -> None:
        if time.monotonic() - self._sent_s >= self._tick_s:
            self.send(pack(("tick", None)))


# The link of `report_progress`, only in the child.
_link: _Link | None = None


def serve(fd_in: int, fd_out: int, memory_mb: int, stall_s: float) -> None:
    """Serve requests until the parent closes the pipe or dies."""
    global _link
    # Ctrl-C reaches the whole terminal group; the parent decides what happens to the child
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from pipeline.video import process

    process.prepare()
    resource.setrlimit(resource.RLIMIT_DATA, (memory_mb << 20, memory_mb << 20))

    # A thread that reads requests sees at once that the parent is gone, whatever the generator is doing. If that
    # holds the interpreter lock, the kernel's alarm ends the process a little later.
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(os.fdopen(fd_in, "rb"), requests), daemon=True).start()
    with os.fdopen(fd_out, "wb") as pipe:
        _link = _Link(pipe, stall_s)
        _link.send(pack(("ready", None)))
        while True:
            _link.disarm()
            target, args, kwargs = requests.get()
            _link.arm()
            for message in _run_generator(target, args, kwargs):
                _link.send(message)


def _listen(pipe: BinaryIO, requests: queue.SimpleQueue[Any]) -> None:
    try:
        while (request := read(pipe)) is not None:
            requests.put(request)
    finally:
        # also if the parent died within a message
        os._exit(0)


def _run_generator(target: str, args: Any, kwargs: Any) -> Iterator[list[memoryview | bytes]]:
    """The items of the target generator and its end, as messages."""

    items: Iterator[object] | None = None

    def step() -> list[memoryview | bytes] | None:
        nonlocal items
        if items is None:
            module, _, function = target.partition(":")
            items = iter(getattr(import_module(module), function)(*args, **kwargs))
        item = next(items, _END)
        return None if item is _END else pack(("item", item))

    try:
        while not isinstance(message := attempt(ErrorCode.INTERNAL_ERROR, step), Failure):
            if message is None:
                yield pack(("end", None))
                return
            yield message
    except RunError as error:
        yield pack(("run", str(error)))
    else:
        yield pack(("failure", message))


if __name__ == "__main__":
    # in the module that generators import, not in this copy of it: they share `_link`
    from pipeline.video import sandbox_child

    sandbox_child.serve(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
