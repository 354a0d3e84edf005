"""The installed command as a process, and a dataset as its reader sees it, for whole-program tests."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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
# Stands before a command so that root, too, may read no more than the modes of files allow.
BOUND_BY_MODES = () if os.geteuid() else ("setpriv", "--bounding-set=-dac_override,-dac_read_search")


def installed(source: Path, target: Path) -> Path:
    """`target`, a folder for PYTHONPATH, with the package in `source` built and installed into it."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--no-deps"]
    how = [*pip, "--no-build-isolation", "--no-index", "--target", str(target), str(source)]
    subprocess.run(how, check=True, capture_output=True)
    return target


class Vdot:
    """The installed command, each time in an empty current folder and with a scratch folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def start(
        self,
        *arguments: object,
        env: dict[str, str] | None = None,
        command: tuple[object, ...] = (VDOT,),
        cwd: Any = None,
    ) -> subprocess.Popen[str]:
        """The command as a running process, in a session of its own."""
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
        """Wait for it to end; one that does not is killed, and fails the test."""
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.kill(process)
            _, stderr = process.communicate()
            pytest.fail(f"{process.args} did not end in {timeout:.0f} s; it wrote:\n{stderr}")
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def kill(self, process: subprocess.Popen[str]) -> None:
        """SIGKILL to the command itself; what it started must notice."""
        process.kill()
        process.wait()

    def __call__(self, *arguments: object, timeout: float = 300, **how: Any) -> subprocess.CompletedProcess[str]:
        return self.finish(self.start(*arguments, **how), timeout)


class Out:
    """A dataset as its reader sees it."""

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
        found: dict[str, dict[str, bytes]] = {}
        for row in rows:
            found |= group_members(folder.read(row["shard"], row["offset"], row["bytes"]))
        return found

    def files(self) -> dict[str, bytes]:
        """Every file of a local dataset."""
        return {str(path): path.read_bytes() for path in sorted(Path(self.url).rglob("*")) if path.is_file()}


def poll(done: Callable[[], Any], seconds: float, what: str) -> Any:
    """Wait until `done()` is true and return it; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return found


def heirs(name: str, value: str) -> list[psutil.Process]:
    """The processes whose environment has this variable with this value."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(name) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system in memory; skips the test where this user may not mount."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "vdot-test", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"cannot mount a file system here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def cluster(*cpus: int, memory: int, gpus: int = 0) -> Iterator[Any]:
    """A Ray cluster of one node per number of CPUs, all on this machine; this process does not join it. `gpus`: what
    Ray is told that each node has; there need be none."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    from ray.cluster_utils import Cluster

    made = Cluster()
    try:
        for number in cpus:
            how = {"memory": memory, "object_store_memory": 100 * 2**20, "include_dashboard": False}
            made.add_node(num_cpus=number, num_gpus=gpus, **how)
        yield made
    finally:
        made.shutdown()


def resize(folder: Path, size: str) -> None:
    """Give what `mounted` made another size."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)
