"""Workers and trainers that are killed, interrupted or forked: the order is unchanged, and nothing is left behind."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import PATIENCE_S, children, remaining
from small_mixture import STEPS, seen

from pipeline.errors import RunError, UsageError
from pipeline.formats import clip_decode
from training.data.stream import Stream


def workers_of(process: int) -> list[psutil.Process]:
    return children(process, "training.data.worker")


def ready_worker(stream: Stream, killed: set[int]) -> Any:
    """A worker's process that has started, except where two died: a third death would end the run."""
    pool = stream._worker_pool
    assert pool is not None
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        pool.collect()
        for worker in pool._workers:
            deaths = [pool._deaths[ticket] for ticket in worker.tickets]
            if worker.ready and worker.process.pid not in killed and max(deaths, default=0) < 2:
                return worker.process
        time.sleep(0.01)
    raise AssertionError("no worker started")


def test_workers_may_be_killed(shared_mixture: Path, reference_batches: list[tuple[Any, ...]]) -> None:
    stream = Stream(str(shared_mixture), workers=2)
    batches, killed = [], set()
    for step in islice(stream, STEPS):
        for batch in step:
            batches.append(seen(batch))
            if len(batches) % 5 == 0:
                process = ready_worker(stream, killed)
                process.kill()
                process.wait()
                killed.add(process.pid)
    assert batches == reference_batches
    assert len(killed) >= 4
    stream.close()
    assert not workers_of(os.getpid())


def mapped(process: int) -> set[str]:
    """Every file that a process has open or mapped, as Linux names it."""
    opened = []
    for link in Path(f"/proc/{process}/fd").iterdir():
        # Closed after it was listed.
        with suppress(FileNotFoundError):
            opened.append(str(link.readlink()))
    lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    return {*opened, *(line.split(maxsplit=5)[5] for line in lines if line.count("/"))}


PROGRAM = """
import json, sys, time
from training.data.stream import Stream

stream = Stream(sys.argv[1], workers=2, state=json.loads(sys.argv[2]))
for step in stream:
    for batch in step:
        print(batch.position, *batch.keys, batch.arrays["clip"].sum(), flush=True)
    time.sleep(0.05)
"""


def test_a_killed_job_leaves_nothing_and_goes_on_in_the_same_order(
    shared_mixture: Path, reference_batches: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    def start(state: Any) -> subprocess.Popen[str]:
        arguments = [sys.executable, "-c", PROGRAM, str(shared_mixture), json.dumps(state)]
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)

    def lines(job: subprocess.Popen[str], count: int) -> list[list[str]]:
        assert job.stdout is not None
        return [line.split() for line in islice(job.stdout, count)]

    job = start(None)
    first = lines(job, 14)
    workers = workers_of(job.pid)
    assert len(workers) == 2
    # They share only anonymous memory, so nothing can be left behind.
    held: set[str] = set()
    deadline = time.monotonic() + 60
    while not any("memfd" in path for path in held) and time.monotonic() < deadline:
        held = {path for process in (job.pid, *(worker.pid for worker in workers)) for path in mapped(process)}
    assert any("memfd" in path for path in held)
    assert not [path for path in held if "/shm/" in path]
    job.send_signal(signal.SIGKILL)
    assert remaining(workers) == []
    job.wait()
    assert not list(tmp_path.rglob("*"))
    resumed = start({"mixture": Stream(str(shared_mixture)).mixture.hash, "split": "train", "position": 12})
    second = lines(resumed, 12)
    resumed.kill()
    resumed.wait()
    assert [(int(position), key) for position, key, _ in first] == [
        (batch[0], batch[2][0]) for batch in reference_batches[:14]
    ]
    assert [(int(position), key) for position, key, _ in second] == [
        (batch[0], batch[2][0]) for batch in reference_batches[12:24]
    ]
    assert second[:2] == first[12:]


def test_ctrl_c_ends_the_workers_with_the_job(shared_mixture: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", PROGRAM, str(shared_mixture), "null"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    job = subprocess.Popen(arguments, text=True, start_new_session=True, cwd=tmp_path, **pipes)
    assert job.stdout is not None
    [*islice(job.stdout, 12)]
    workers = workers_of(job.pid)
    os.killpg(job.pid, signal.SIGINT)
    _, stderr = job.communicate(timeout=PATIENCE_S)
    assert stderr.count("Traceback") == 1
    assert remaining(workers) == []


def test_a_clip_at_which_workers_die_is_named(
    private_mixture: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A module that shadows ours on the workers' path, and whose decoder crashes at one clip.
    original, shadow = Path(clip_decode.__file__), tmp_path / "shadow"
    shutil.copytree(original.parents[1], shadow / "pipeline")
    crash = "    if shape == (9, 48, 64):\n        import os\n\n        os.abort()\n"
    (shadow / "pipeline/formats/clip_decode.py").write_text(
        original.read_text().replace("    clip = np.empty((3", crash + "    clip = np.empty((3", 1)
    )
    monkeypatch.syspath_prepend(str(shadow))
    stream = Stream(str(private_mixture), workers=1)
    deadline = time.monotonic() + 60
    with pytest.raises(RunError, match=r"3 workers died .*status -6.*at the same clips: [0-9a-f]{32} \(shards/"):
        while time.monotonic() < deadline:
            stream.load_state_dict({"mixture": stream.mixture.hash, "split": "train", "position": 0})
            for step in islice(stream, STEPS):
                list(step)
    stream.close()


def test_a_stream_is_used_where_it_was_made(shared_mixture: Path) -> None:
    stream = Stream(str(shared_mixture))
    with (
        multiprocessing.get_context("fork").Pool(1) as pool,
        pytest.raises(UsageError, match="made in another process"),
    ):
        pool.apply(first_of, (stream,))


def first_of(stream: Stream) -> int:
    return next(iter(next(iter(stream)))).position


FORKING = """
import os, sys, time
from training.data.stream import Stream

stream = Stream(sys.argv[1], workers=1)
for step in stream:
    list(step)
    if any(worker.ready for worker in stream._worker_pool._workers):
        break
child = os.fork()
if not child:
    # The workers must not depend on what a fork does with its copy.
    del step, stream
    time.sleep(600)
    os._exit(0)
print(child, flush=True)
# The test inspects the workers before they may end.
sys.stdin.readline()
[list(step) for _, step in zip(range(3), stream)]
"""


def test_a_fork_of_the_trainer_holds_nothing_up(shared_mixture: Path) -> None:
    arguments = [sys.executable, "-c", FORKING, str(shared_mixture)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(arguments, text=True, **pipes) as job:
        assert job.stdin is not None
        assert job.stdout is not None
        child = psutil.Process(int(job.stdout.readline()))
        workers = workers_of(job.pid)
        try:
            assert len(workers) == 1
            job.stdin.write("\n")
            job.stdin.flush()
            assert job.wait(timeout=PATIENCE_S) == 0
            assert remaining(workers) == []
            assert child.is_running()
        finally:
            child.kill()
