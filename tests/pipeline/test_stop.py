"""SIGTERM and Ctrl-C request a stop; a later signal does what the run has chosen."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

# Sends itself the signals of its arguments, each when the one before was handled; says what came of them.
SCRIPT = """
import os, signal, sys
from pipeline.stop import Stop, exit_at_once, interrupt_again
insist = {"exit": exit_at_once, "interrupt": interrupt_again}[sys.argv[1]]
before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
try:
    with Stop(insist, "a notice") as stop:
        assert not stop.requested
        for number in sys.argv[2:]:
            os.kill(os.getpid(), int(number))
            assert stop.requested
except KeyboardInterrupt:
    print("interrupted")
assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
print("ended in order")
"""


def send(policy: str, *numbers: signal.Signals) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, policy, *(str(int(number)) for number in numbers)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_request(number: signal.Signals) -> None:
    process = send("exit", number)
    assert (process.returncode, process.stdout, process.stderr) == (0, "ended in order\n", "\na notice\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ingest_ends_at_once_at_any_second_signal(number: signal.Signals) -> None:
    process = send("exit", signal.SIGTERM, number)
    assert (process.returncode, process.stdout) == (1, "")
    assert "stopped at once; what was committed is kept" in process.stderr


def test_a_trainer_is_interrupted_by_a_second_ctrl_c_alone() -> None:
    assert send("interrupt", signal.SIGTERM, signal.SIGTERM).stdout == "ended in order\n"
    assert send("interrupt", signal.SIGTERM, signal.SIGINT).stdout == "interrupted\nended in order\n"
