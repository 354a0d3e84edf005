"""Runs the installed command as a process, and reads datasets as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.catalog.catalog import Catalog, values
from pipeline.formats.shards import group_members
from pipeline.storage.folder import Folder
from pipeline.storage.scratch import Scratch

VDOT = Path(sys.executable).parent / "vdot-data"
# A prefix for commands, so that root, too, is bound by the modes of files.
BOUND_BY_MODES = () if os.geteuid() else ("setpriv", "--bounding-set=-dac_override,-dac_read_search")


def install(source: Path, target: Path) -> Path:
    """Build the package in `source` and install it into `target`, a folder for PYTHONPATH; returns `target`."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--no-deps"]
    command = [*pip, "--no-build-isolation", "--no-index", "--target", str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return target


def install_files(files: Mapping[str, str], folder: Path) -> Path:
    """Write the package of these files (name to text) under `folder`, and install it; returns a folder for
    PYTHONPATH."""
    pytest.importorskip("setuptools")
    source = folder / "source"
    source.mkdir()
    for name, text in files.items():
        (source / name).write_text(text)
    return install(source, folder / "site")


class Vdot:
    """Runs the installed command, each time in an empty current folder and with a scratch folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def start(
        self,
        *arguments: object,
        env: dict[str, str] | None = None,
        command: tuple[object, ...] = (VDOT,),
        cwd: Any = None,
    ) -> subprocess.Popen[str]:
        """Start the command in a session of its own."""
        cwd = cwd or tempfile.mkdtemp(dir=self._folder)
        scratch = tempfile.mkdtemp(dir=self._folder)
        return subprocess.Popen(
            [str(part) for part in (*command, *arguments)],
            cwd=cwd,
            env=os.environ | {"VDOT_SCRATCH": scratch} | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self, process: subprocess.Popen[str], timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Wait for a process to end; if it does not, kill it and fail the test."""
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.kill(process)
            _, stderr = process.communicate()
            pytest.fail(f"{process.args} did not end in {timeout:.0f} s; it wrote:\n{stderr}")
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def kill(self, process: subprocess.Popen[str]) -> None:
        """Send SIGKILL to the command itself; its child processes must notice."""
        process.kill()
        process.wait()

    def __call__(self, *arguments: object, timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.finish(self.start(*arguments, **options), timeout)


class Out:
    """A dataset as a user reads it."""

    def __init__(self, url: str | Path) -> None:
        self.url = str(url)

    def query(self, sql: str) -> list[dict[str, Any]]:
        """Rows of the catalog's views."""
        with Scratch() as scratch:
            return values(Catalog(Folder(self.url), scratch.path).connect(), sql)

    def sources(self) -> dict[str, dict[str, Any]]:
        """File name -> row."""
        return {row["source_uri"].rpartition("/")[2]: row for row in self.query("SELECT * FROM sources")}

    def clips(self) -> dict[str, dict[str, Any]]:
        """Clip id -> row."""
        return {row["clip_id"]: row for row in self.query("SELECT * FROM clips")}

    def samples(self) -> dict[str, dict[str, bytes]]:
        """Clip id -> member -> bytes, of every kept clip."""
        folder = Folder(self.url)
        rows = self.query("SELECT shard, \"offset\", bytes FROM clips WHERE status = 'kept'")
        samples: dict[str, dict[str, bytes]] = {}
        for row in rows:
            samples |= group_members(folder.read(row["shard"], row["offset"], row["bytes"]))
        return samples

    def files(self) -> dict[str, bytes]:
        """Every file of a local dataset."""
        return {str(path): path.read_bytes() for path in sorted(Path(self.url).rglob("*")) if path.is_file()}


def poll(condition: Callable[[], Any], seconds: float, description: str) -> Any:
    """Wait until `condition()` is true and return its result; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {description}"
        time.sleep(0.05)
    return result


def find_processes(name: str, value: str) -> list[psutil.Process]:
    """The processes with this variable and value in their environment."""
    matches = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(name) == value and process.status() != psutil.STATUS_ZOMBIE:
                matches.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return matches


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Mount a small file system in memory; skips the test if this user may not mount."""
    folder.mkdir(parents=True, exist_ok=True)
    process = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "vdot-test", str(folder)], capture_output=True, text=True
    )
    if process.returncode:
        pytest.skip(f"cannot mount a file system here: {process.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def cluster(*cpus: int, memory: int, gpus: int = 0) -> Iterator[Any]:
    """A Ray cluster of one node per number of CPUs, all on this machine; this process does not join it. `gpus`: the
    number of GPUs that each node declares to Ray; they need not exist."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    from ray.cluster_utils import Cluster

    ray_cluster = Cluster()
    try:
        for number in cpus:
            resources = {"memory": memory, "object_store_memory": 100 * 2**20, "include_dashboard": False}
            ray_cluster.add_node(num_cpus=number, num_gpus=gpus, **resources)
        yield ray_cluster
    finally:
        ray_cluster.shutdown()


def resize(folder: Path, size: str) -> None:
    """Change the size of a file system made by `mounted`."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)
