"""Trainers that are killed at any moment: what goes on from the newest checkpoint is the run that was never killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import program
import pytest
from processes import PATIENCE_S, children, remaining
from tiny_run import DISTILL, equal, logged, stored, train

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.long]

STEPS = 8
TOLD = DISTILL | {"steps": STEPS, "saves": {"every": 1, "keep": 2}}


@contextmanager
def running(out: Path, file: Path, count: int) -> Iterator[subprocess.Popen[str]]:
    """The command as users give it, in one process or by torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
    command = [sys.executable, *torchrun, "-m", "training.cli", "distill", str(file), "--out", str(out)]
    with subprocess.Popen(
        [*command, "--resume", "latest"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as job:
        try:
            yield job
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)


def trained(out: Path) -> int:
    """Steps that are in the log."""
    log = out / "log.jsonl"
    return len(log.read_text().splitlines()) if log.is_file() else 0


def begun(job: subprocess.Popen[str], out: Path, steps: int) -> None:
    """Wait until so many steps are in the log."""
    program.poll(lambda: trained(out) >= steps or job.poll() is not None, 300, f"step {steps}")
    assert job.poll() is None, "it ended before it could be killed"


def test_a_run_that_is_killed_again_and_again_is_the_calm_run(config: Any, tmp_path: Path) -> None:
    file, out = config(TOLD), tmp_path / "killed"
    train("distill", file, tmp_path / "calm")
    for _ in range(3):
        with running(out, file, 1) as job:
            begun(job, out, trained(out) + 1)
            # Between steps, within one, or while a checkpoint is written.
            time.sleep(random.uniform(0, 0.5))
            job.kill()
    with running(out, file, 1) as job:
        assert job.wait(timeout=300) == 0
    equal(stored(tmp_path / "calm", STEPS), stored(out, STEPS))
    calm, killed = (
        [{name: value for name, value in one.items() if "time" not in name} for one in logged(where)]
        for where in (tmp_path / "calm", out)
    )
    assert calm == killed
    # Nothing half done is left.
    assert sorted(one.name for one in (out / "checkpoints").iterdir()) == [f"step-{n:07d}" for n in (STEPS - 1, STEPS)]


def test_of_two_processes_one_is_killed_and_the_other_ends_too(config: Any, tmp_path: Path) -> None:
    file, out = config(TOLD), tmp_path / "run"
    with running(out, file, 2) as job:
        begun(job, out, 2)
        workers = children(job.pid, "training.cli", recursive=True)
        assert len(workers) == 2
        workers[1].kill()
        assert job.wait(timeout=PATIENCE_S) != 0
        assert remaining(workers) == []
    train("distill", file, out, "latest")
    train("distill", file, tmp_path / "calm")
    equal(stored(tmp_path / "calm", STEPS), stored(out, STEPS), 1e-3)
