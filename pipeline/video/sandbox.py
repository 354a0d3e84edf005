"""A child process that can be killed, because decoders crash, hang and swallow memory on damaged files.

It guards against broken files, not against an attacker: the child may read and write what its parent may.
"""

from __future__ import annotations

import os
import pickle
import re
import select
import signal
import struct
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from io import BufferedWriter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.errors import ClipError, ErrorCode, RunError
from pipeline.video.messages import LENGTH, parts, write

# A new child has this long to import numpy and OpenCV, on a busy machine with a cold disk.
_START_S = 120.0
# Signals that no decoder raises: the node is going down, or the system is out of memory.
_FROM_OUTSIDE = ("SIGKILL", "SIGTERM", "SIGHUP")
# As much of what a dying child wrote goes into its verdict.
_LINES = 5
_LINE_CHARACTERS = 200


class Sandbox:
    """Runs generators in one long-lived child process; a child that fails is replaced at the next call.

    `memory_mb` bounds the child's own memory (its RLIMIT_DATA); `stall_s` is the longest silence before it is
    killed: neither an item nor a call of `sandbox_child.alive`. For one thread at a time.
    """

    def __init__(self, memory_mb: int, stall_s: float) -> None:
        self._memory_mb = memory_mb
        self._stall_s = stall_s
        self._child: _Child | None = None

    def stream(self, target: str, *args: object, **kwargs: object) -> Iterator[Any]:
        """Call the generator function `target` ("module:function") in the child and yield what it yields.

        Arguments and items are pickled; arrays travel without being copied into the pickle. An abandoned
        stream costs its child; to start another before it ends is an end to the first. Raises ClipError: the
        code with which the generator failed (INTERNAL_ERROR if it had none), OUT_OF_MEMORY, DECODE_TIMEOUT
        where there was no progress for `stall_s` seconds, DECODE_CRASH where the child died, WORKER_DIED where someone
        else killed it (then another try may well succeed). A RunError stays one.
        """
        child = self._free_child()
        child.begin()
        try:
            child.send((target, args, kwargs))
            while True:
                kind, value = child.receive(self._stall_s)
                if kind == "item":
                    yield value
                if kind in ("item", "tick"):
                    continue
                # after a lack of memory the child is left to be replaced
                child.busy = kind == "failure" and value.code == ErrorCode.OUT_OF_MEMORY
                if kind == "failure":
                    raise value.raised()
                if kind == "run":
                    raise RunError(value)
                return
        finally:
            if child.busy:
                child.kill()

    def close(self) -> None:
        """End the child. The sandbox can still be used: the next stream starts another."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _free_child(self) -> _Child:
        if self._child is not None and (self._child.busy or not self._child.alive()):
            self.close()
        if self._child is None:
            self._child = _Child(self._memory_mb, self._stall_s)
        return self._child


class _Child:
    """The parent's end of one child process and its two pipes."""

    def __init__(self, memory_mb: int, stall_s: float) -> None:
        self.busy = False
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        numbers = [str(n) for n in (theirs_in, theirs_out, memory_mb, stall_s)]
        self._said = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        # A process of our own rather than multiprocessing, which imports the parent's main module again; and
        # pipes of our own, so that a library that prints cannot break the messages.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-X", "faulthandler", "-m", "pipeline.video.sandbox_child", *numbers],
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=subprocess.STDOUT,
            pass_fds=(theirs_in, theirs_out),
            env=_environment(),
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._out: BufferedWriter = os.fdopen(ours_out, "wb")
        self._in = ours_in
        try:
            self.receive(_START_S)
        except ClipError as error:
            raise RunError(f"The decoder's process does not start: {error.detail}.") from error

    def alive(self) -> bool:
        return self._process.poll() is None

    def begin(self) -> None:
        """What the child wrote of earlier work is of no interest, and would grow for as long as it lives."""
        self.busy = True
        self._said.seek(0)
        self._said.truncate()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._in >= 0:
            os.close(self._in)
            self._in = -1
            # raw: what a broken pipe left in the buffer is not wanted any more
            self._out.raw.close()
            self._said.close()

    def send(self, message: object) -> None:
        try:
            write(self._out, parts(message))
        except BrokenPipeError:
            raise self._death() from None

    def receive(self, stall_s: float) -> Any:
        if self._in < 0:
            raise RuntimeError("this stream was ended by a later one of the same sandbox")
        (count,) = LENGTH.unpack(self._read(LENGTH.size, stall_s))
        lengths = struct.unpack(f">{count}Q", self._read(LENGTH.size * count, stall_s))
        body, *buffers = [self._read(length, stall_s) for length in lengths]
        return pickle.loads(body, buffers=buffers)  # noqa: S301

    def _read(self, length: int, stall_s: float) -> bytearray:
        data = bytearray(length)
        view = memoryview(data)
        poll = select.poll()
        poll.register(self._in, select.POLLIN)
        while view:
            if not poll.poll(stall_s * 1000):
                self.kill()
                raise ClipError(ErrorCode.DECODE_TIMEOUT, f"no progress for {stall_s:g} s")
            got = os.readv(self._in, [view])
            if not got:
                raise self._death()
            view = view[got:]
        return data

    def _death(self) -> ClipError:
        """What to say of a child whose pipe is closed."""
        status = self._process.wait()
        self._said.seek(0)
        said = self._said.read().decode(errors="replace")
        self.kill()
        if status == -signal.SIGALRM:
            return ClipError(ErrorCode.DECODE_TIMEOUT, "no progress")
        name = signal.Signals(-status).name if status < 0 else ""
        if name in _FROM_OUTSIDE:
            return ClipError(ErrorCode.WORKER_DIED, f"{name} ended the decoder process, perhaps for want of memory")
        end = f"was ended by {name}" if name else f"exited with status {status}"
        return ClipError(ErrorCode.DECODE_CRASH, f"the decoder process {end}{_last_words(said)}")


def _last_words(said: str) -> str:
    """What a child wrote before it died, short enough for a verdict: messages, then where Python was."""
    # faulthandler's list of threads and extension modules says nothing to those who read a verdict
    message, _, stack = said.partition("Fatal Python error: ")
    where = re.search(r'Current thread.*\n  File "(?:.*/)?(.+)", line (\d+) in (.+)', stack)
    words = [line[:_LINE_CHARACTERS] for line in message.splitlines()[-_LINES:]]
    words = " ".join([*words, f"at {where[1]}:{where[2]}, {where[3]}" if where else ""]).split()
    return f": {' '.join(words)}" if words else ""


def _environment() -> dict[str, str]:
    """The parent's environment, with the folder that holds this package where only the parent would find it."""
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    # installed packages are found anyway, and a site-packages folder must not go before the standard library
    if root not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        known = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{root}{os.pathsep}{known}" if known else root
    return environment
