"""A child process that can be killed, because decoders crash, hang and swallow memory on damaged files.

It guards against broken files, not against attackers: the child may read and write whatever its parent may.
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
from pipeline.video.messages import LENGTH, pack, write

# A new child has this long to import numpy and OpenCV, on a busy machine with a cold disk.
_START_S = 120.0
# Signals that no decoder raises: the node is going down, or the system is out of memory.
_FROM_OUTSIDE = ("SIGKILL", "SIGTERM", "SIGHUP")
# How much of a dying child's output goes into its verdict.
_LINES = 5
_LINE_CHARACTERS = 200


class Sandbox:
    """Runs generators in one long-lived child process; a child that fails is replaced at the next call.

    `memory_mb` bounds the child's own memory (its RLIMIT_DATA); `stall_s` is the longest silence before it is
    killed: neither an item nor a call of `sandbox_child.report_progress`. For one thread at a time.
    """

    def __init__(self, memory_mb: int, stall_s: float) -> None:
        self._memory_mb = memory_mb
        self._stall_s = stall_s
        self._child: _Child | None = None

    def stream(self, target: str, *args: object, **kwargs: object) -> Iterator[Any]:
        """Call the generator function `target` ("module:function") in the child and yield what it yields.

        Arguments and items are pickled; arrays travel without being copied into the pickle. An abandoned
        stream costs its child; starting another stream ends the first. Raises ClipError: the code with which the
        generator failed (INTERNAL_ERROR if it had none), OUT_OF_MEMORY, DECODE_TIMEOUT if there was no progress for
        `stall_s` seconds, DECODE_CRASH if the child died, WORKER_DIED if something else killed it (then another try
        may well succeed). A RunError stays a RunError.
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
                # after running out of memory the child is to be replaced
                child.busy = kind == "failure" and value.code == ErrorCode.OUT_OF_MEMORY
                if kind == "failure":
                    raise value.to_exception()
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
        if self._child is not None and (self._child.busy or not self._child.is_alive()):
            self.close()
        if self._child is None:
            self._child = _Child(self._memory_mb, self._stall_s)
        return self._child


class _Child:
    """The parent's end of one child process and its two pipes."""

    def __init__(self, memory_mb: int, stall_s: float) -> None:
        self.busy = False
        child_in, parent_out = os.pipe()
        parent_in, child_out = os.pipe()
        arguments = [str(n) for n in (child_in, child_out, memory_mb, stall_s)]
        self._output = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        # Not multiprocessing, which imports the parent's main module again; and separate pipes, so that a library that
        # prints cannot corrupt the messages.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-X", "faulthandler", "-m", "pipeline.video.sandbox_child", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            pass_fds=(child_in, child_out),
            env=_child_environment(),
        )
        os.close(child_in)
        os.close(child_out)
        self._out: BufferedWriter = os.fdopen(parent_out, "wb")
        self._in = parent_in
        try:
            self.receive(_START_S)
        except ClipError as error:
            raise RunError(f"The decoder's process does not start: {error.detail}.") from error

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def begin(self) -> None:
        """Start a stream. The child's earlier output is discarded: it would grow for as long as the child lives."""
        self.busy = True
        self._output.seek(0)
        self._output.truncate()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._in >= 0:
            os.close(self._in)
            self._in = -1
            # raw: what a broken pipe left in the buffer is no longer wanted
            self._out.raw.close()
            self._output.close()

    def send(self, message: object) -> None:
        try:
            write(self._out, pack(message))
        except BrokenPipeError:
            raise self._describe_death() from None

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
            count = os.readv(self._in, [view])
            if not count:
                raise self._describe_death()
            view = view[count:]
        return data

    def _describe_death(self) -> ClipError:
        """The error for a child whose pipe is closed."""
        status = self._process.wait()
        self._output.seek(0)
        output = self._output.read().decode(errors="replace")
        self.kill()
        if status == -signal.SIGALRM:
            return ClipError(ErrorCode.DECODE_TIMEOUT, "no progress")
        name = signal.Signals(-status).name if status < 0 else ""
        if name in _FROM_OUTSIDE:
            return ClipError(ErrorCode.WORKER_DIED, f"{name} ended the decoder process, perhaps for want of memory")
        end = f"was ended by {name}" if name else f"exited with status {status}"
        return ClipError(ErrorCode.DECODE_CRASH, f"the decoder process {end}{_summarise_output(output)}")


def _summarise_output(output: str) -> str:
    """What a child wrote before it died, shortened for a verdict: messages, then where Python was."""
    # faulthandler's list of threads and extension modules is useless in a verdict
    message, _, stack = output.partition("Fatal Python error: ")
    location = re.search(r'Current thread.*\n  File "(?:.*/)?(.+)", line (\d+) in (.+)', stack)
    words = [line[:_LINE_CHARACTERS] for line in message.splitlines()[-_LINES:]]
    words = " ".join([*words, f"at {location[1]}:{location[2]}, {location[3]}" if location else ""]).split()
    return f": {' '.join(words)}" if words else ""


def _child_environment() -> dict[str, str]:
    """The parent's environment, plus the folder of this package if only the parent could find it."""
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    # installed packages are found anyway, and a site-packages folder must not precede the standard library
    if root not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        python_path = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{root}{os.pathsep}{python_path}" if python_path else root
    return environment
