"""Tests exactly-once: SIGKILLs ingest's driver, workers and nodes at random, and compares with an undisturbed run."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pipeline.catalog.catalog import Catalog, values
from pipeline.formats import shards
from pipeline.storage.folder import Folder
from pipeline.storage.scratch import Scratch
from pipeline.upkeep.verify import verify

# Small shards and frequent commits, so that a kill meets every phase of the protocol; the rest is the default recipe.
RECIPE = "commit: {shard_mb: 2, every_s: 3}\n"


def measure(clips: Path, count: int, seed: int, nodes: int, recipe: str = RECIPE) -> dict[str, Any]:
    """Kill until `count` kills have landed, in as many datasets as that takes; each must equal the undisturbed one."""
    rng = random.Random(seed)  # noqa: S311
    kills: Counter[str] = Counter()
    problems: list[str] = []
    rounds = 0
    with tempfile.TemporaryDirectory(prefix="vdot-kills-") as temporary, _cluster(nodes) as cluster:
        folder = Path(temporary)
        (folder / "recipe.yaml").write_text(recipe)
        command = [
            str(Path(sys.executable).with_name("vdot-data")),
            "ingest",
            str(clips),
            "--recipe",
            str(folder / "recipe.yaml"),
        ]
        command += ["--address", cluster.address] if cluster else []
        started = time.monotonic()
        subprocess.run([*command, "--out", str(folder / "calm")], check=True, cwd=folder, capture_output=True)
        calm_s = time.monotonic() - started
        calm = read_state(str(folder / "calm"))
        while kills.total() < count:
            out = folder / f"killed-{rounds}"
            _run_disturbed([*command, "--out", str(out)], folder, cluster, rng, kills, count, calm_s)
            problems += [f"round {rounds}: {text}" for text in differences(calm, read_state(str(out)))]
            problems += [f"round {rounds}: {problem.text}" for problem in verify(str(out), 1).problems]
            rounds += 1
    return {
        "same": not problems,
        "clips": len(calm.samples),
        "rows": len(calm.verdicts),
        "calm_s": round(calm_s, 1),
        "datasets": rounds,
        "kills": dict(kills),
        "problems": problems[:50],
    }


@dataclass(frozen=True, slots=True)
class State:
    """What must not depend on kills: verdicts, a digest per stored sample, and how often each key is stored."""

    verdicts: dict[str, tuple[str, str | None]]
    samples: dict[str, str]
    stored: dict[str, int]


def read_state(out: str) -> State:
    """The state of a dataset, read as a user would: through the catalog, and by opening every shard."""
    folder = Folder(out)
    stored: Counter[str] = Counter()
    samples: dict[str, str] = {}
    with Scratch() as scratch:
        rows = values(Catalog(folder, scratch.path).connect(), "SELECT * FROM clips")
    verdicts: dict[str, tuple[str, str | None]] = {}
    for row in rows:
        reason = f"{row['code']}: {row['detail']}" if row["code"] else row["rule"]
        verdicts[row["clip_id"]] = (row["status"], reason)
        if row["shard"]:
            members = shards.read_sample(folder, row["clip_id"], row["shard"], row["offset"], row["bytes"])
            samples[row["clip_id"]] = hashlib.sha256(repr(sorted(members.items())).encode()).hexdigest()
    for entry in folder.list_files("shards"):
        stored.update(shards.group_members(folder.read(f"shards/{entry.name}")).keys())
    return State(verdicts, samples, dict(stored))


def differences(calm: State, killed: State) -> list[str]:
    """Sentences on how a dataset differs from the undisturbed one."""
    sentences = []
    if calm.verdicts != killed.verdicts:
        sentences.append(f"verdicts differ: {sorted(calm.verdicts.items() ^ killed.verdicts.items())[:4]}")
    if calm.samples != killed.samples:
        sentences.append(f"sample bytes differ: {sorted(calm.samples.items() ^ killed.samples.items())[:4]}")
    duplicates = {clip: times for clip, times in killed.stored.items() if times > 1}
    if duplicates:
        sentences.append(f"stored more than once: {duplicates}")
    return sentences


def _run_disturbed(
    command: list[str],
    folder: Path,
    cluster: Any,
    rng: random.Random,
    kills: Counter[str],
    kill_limit: int,
    calm_s: float,
) -> None:
    """Run a command to its end, killing one of its processes now and then and restarting it at once when it dies."""
    while True:
        stderr_file = folder / "stderr.txt"
        with stderr_file.open("wb") as file:
            process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=file)
        while process.poll() is None:
            # The moment may be early in start-up or long after the first commit.
            moment = time.monotonic() + rng.uniform(0.5, max(4.0, calm_s / 2))
            while time.monotonic() < moment and process.poll() is None:
                time.sleep(0.05)
            if process.poll() is None and kills.total() < kill_limit:
                kills.update(_kill(process.pid, cluster, rng))
        if process.returncode == 0:
            return
        if process.returncode != -signal.SIGKILL:
            raise AssertionError(f"ingest ended with {process.returncode}: {stderr_file.read_text()[-2000:]}")


def _kill(driver: int, cluster: Any, rng: random.Random) -> list[str]:
    """SIGKILL the driver, a worker, a decoder, or a complete node; returns which, or nothing if it was not running.

    No decoder runs during start-up: then nothing is killed, so that kills do not concentrate there.
    """
    victim = rng.choice(["driver", "worker", "decoder", *(["node"] if cluster else ["worker"])])
    if victim == "node":
        cluster.replace_node()
        return [victim]
    if victim == "driver":
        os.kill(driver, signal.SIGKILL)
        return [victim]
    matches = {"worker": _is_worker, "decoder": _is_decoder}[victim]
    roots = cluster.raylets() if cluster else [driver]
    alive = [process for root in roots for process in _children(root) if matches(_command(process))]
    if not alive:
        return []
    try:
        rng.choice(alive).kill()
    except psutil.NoSuchProcess:
        return []
    return [victim]


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


def _is_worker(command: str) -> bool:
    # Without its agents a node gives up: that would be a different kind of kill.
    return command.startswith("ray::") and "Agent" not in command and "IDLE" not in command


def _is_decoder(command: str) -> bool:
    return "pipeline.video.sandbox_child" in command


class _Cluster:
    """A head node and one more, on this machine."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "object_store_memory": 300 << 20}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = self._cluster.address
        self._node = self._add()

    def _add(self) -> Any:
        return self._cluster.add_node(num_cpus=1, object_store_memory=300 << 20)

    def raylets(self) -> list[int]:
        """Process ids of the nodes' raylets, whose children are the workers."""
        nodes = [self._cluster.head_node, self._node]
        return [node.all_processes["raylet"][0].process.pid for node in nodes if "raylet" in node.all_processes]

    def replace_node(self) -> None:
        """SIGKILL every process of the second node, and let a new one join."""
        pid = self._node.all_processes["raylet"][0].process.pid
        for process in [*_children(pid), psutil.Process(pid)]:
            # Each would end when it notices that its parent is gone, and must not take that for a file's fault.
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._cluster.remove_node(self._node, allow_graceful=False)
        self._node = self._add()

    def shutdown(self) -> None:
        self._cluster.shutdown()


@contextmanager
def _cluster(nodes: int) -> Iterator[_Cluster | None]:
    if nodes == 1:
        yield None
        return
    cluster = _Cluster()
    try:
        yield cluster
    finally:
        cluster.shutdown()
