"""Trainers that are killed at any moment: the resumed run equals one that was never killed."""

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
SETTINGS = DISTILL | {"steps": STEPS, "saves": {"every": 1, "keep": 2}}


@contextmanager
def start_distilling(out: Path, file: Path, count: int) -> Iterator[subprocess.Popen[str]]:
    """Run the command line, in one process or by torchrun."""
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


def count_logged_steps(out: Path) -> int:
    """The number of steps in the log."""
    log = out / "log.jsonl"
    return len(log.read_text().splitlines()) if log.is_file() else 0


def wait_for_step(job: subprocess.Popen[str], out: Path, steps: int) -> None:
    """Wait until the log has `steps` steps."""
    program.poll(lambda: count_logged_steps(out) >= steps or job.poll() is not None, 300, f"step {steps}")
    assert job.poll() is None, "it ended before it could be killed"


def test_a_run_that_is_killed_again_and_again_is_the_calm_run(config: Any, tmp_path: Path) -> None:
    file, out = config(SETTINGS), tmp_path / "killed"
    train("distill", file, tmp_path / "calm")
    for _ in range(3):
        with start_distilling(out, file, 1) as job:
            wait_for_step(job, out, count_logged_steps(out) + 1)
            # Between steps, within one, or while a checkpoint is written.
            time.sleep(random.uniform(0, 0.5))
            job.kill()
    with start_distilling(out, file, 1) as job:
        assert job.wait(timeout=300) == 0
    equal(stored(tmp_path / "calm", STEPS), stored(out, STEPS))
    undisturbed, killed = (
        [{name: value for name, value in entry.items() if "time" not in name} for entry in logged(run)]
        for run in (tmp_path / "calm", out)
    )
    assert undisturbed == killed
    # Nothing incomplete is left.
    assert sorted(entry.name for entry in (out / "checkpoints").iterdir()) == [
        f"step-{step:07d}" for step in (STEPS - 1, STEPS)
    ]


def test_of_two_processes_one_is_killed_and_the_other_ends_too(config: Any, tmp_path: Path) -> None:
    file, out = config(SETTINGS), tmp_path / "run"
    with start_distilling(out, file, 2) as job:
        wait_for_step(job, out, 2)
        workers = children(job.pid, "training.cli", recursive=True)
        assert len(workers) == 2
        workers[1].kill()
        assert job.wait(timeout=PATIENCE_S) != 0
        assert remaining(workers) == []
    train("distill", file, out, "latest")
    train("distill", file, tmp_path / "calm")
    equal(stored(tmp_path / "calm", STEPS), stored(out, STEPS), 1e-3)
