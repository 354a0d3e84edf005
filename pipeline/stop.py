"""SIGTERM and Ctrl-C: a request to stop, which a run follows when what it has begun is finished and stored."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any


class Stop:
    """While it is open, SIGTERM and Ctrl-C set `requested` instead of ending the process.

    Python handles signals in the main thread alone: opened in another one, it changes nothing.
    """

    def __init__(self, insist: Callable[[int], None], notice: str = "") -> None:
        """`notice`: a line for stderr when the first signal comes; later ones call `insist` with their number."""
        self.requested = False
        self._insist, self._notice = insist, notice
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous_handlers[number] = signal.signal(number, self._handle_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _handle_signal(self, number: int, _frame: object) -> None:
        if self.requested:
            self._insist(number)
            return
        self.requested = True
        if self._notice:
            _write_line(self._notice)


def exit_at_once(_number: int) -> None:
    """End the process now, with exit status 1."""
    _write_line("vdot-data: stopped at once; what was committed is kept")
    os._exit(1)


def interrupt_again(number: int) -> None:
    """Interrupt at a second Ctrl-C. Not at SIGTERM: torchrun forwards it, so a process may get it twice if a scheduler
    also sent it to every process."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt


def interrupt_at_sigterm() -> None:
    """Let SIGTERM do what Ctrl-C does: for a program, as long as no `Stop` is open."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _write_line(line: str) -> None:
    # Not through the console, which may be in the middle of a line.
    os.write(2, f"\n{line}\n".encode())
