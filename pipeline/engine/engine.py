"""Work in, settled blocks out, through pools of workers that are sized from whatever cluster there is.

Ray Data moves the rows. Every row is a block of its own, so that a clip goes on the moment it is made and a lost worker
loses one clip.
"""

from __future__ import annotations

import ctypes
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import pyarrow as pa

from pipeline.engine.cluster import unreachable
from pipeline.errors import RunError

# Before ray is imported: no usage report, and no bars and lines between ours. What it has to say comes with `LOST`.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# A call after the end is an error; else Ray would start anew for it.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_DATA_LOG_LEVEL", "CRITICAL")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
# Ray ends idle processes when the stages' actors hold the node's CPUs; starting one anew for every `peek` and `pack`
# took a fifth of two cores, measured. The ones that it starts ahead lack the job's environment, and are never used.
os.environ.setdefault("RAY_num_workers_soft_limit", "4")
os.environ.setdefault("RAY_enable_worker_prestart", "0")
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.engine.coordinator import Coordinator, CoordinatorClient

# A worker of each stage holds its networks and one decoder process with the frames that it keeps: about 1.7 GB
# together, measured.
CORE_MEMORY = 1.7e9
# Share of a core that the stages reserve together. Each core gets one worker of every stage; the operating system
# shares the core between them, so no core idles while any stage has work. The rest lets Ray's own tasks be placed.
RESERVED = 0.9
# The object store holds encoded clips in flight; more would only delay backpressure.
STORE_BYTES = 1 << 30
# One thread each, as there is a worker per core. And glibc keeps freed memory up to these bytes, in one arena: giving
# pages back and taking them again for a network's activations cost 15 % of TransNetV2's time, measured, and peak
# memory was no less.
WORKER_ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
}
# Pieces of work that one plan takes, per worker and at most. The driver grows by about 10 KB a piece while a plan lasts
# (Ray Data keeps what it knows of every block) and gives it back at the end, measured; a new plan takes 6 seconds.
ROUND = 1_000
LONGEST = 40_000


@dataclass(frozen=True, slots=True)
class Pool:
    """Workers that each make `stage(*arguments)` once, then call it with tables of one row.

    There are `least` to `most` of them, as work comes; `in_flight` tables are on their way to one. Where there are GPUs
    one that is `on_gpu` has a share of one.
    """

    stage: type
    arguments: tuple[Any, ...]
    least: int
    most: int
    in_flight: int
    on_gpu: bool = False


class Engine:
    """A connection to Ray, local or remote, that runs tables of work through pools of workers. A context manager."""

    def __init__(self, address: str | None, cpus: int | None, index: Path, deaths: int) -> None:
        """`address`: a running cluster, or None for a local Ray of this process's own, with `cpus` CPUs
        (None: all). `index`, `deaths`: see `Coordinator`.

        Raises `RunError` when the cluster cannot be reached.
        """
        # Workers must not import a folder `pipeline/` of the user's from the current directory.
        self._empty = tempfile.TemporaryDirectory(prefix="vdot-empty-")
        local: dict[str, Any] = {"object_store_memory": _store_bytes(), "include_dashboard": False, "num_cpus": cpus}
        silent = unreachable(address) if address else None
        if silent:
            raise RunError(f"cannot join the Ray cluster at {address}: {silent}")
        try:
            with _quiet():
                ray.init(
                    address=address or "local",  # of its own, even where a cluster runs on this machine
                    runtime_env={"working_dir": self._empty.name, "env_vars": WORKER_ENVIRONMENT},
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    **({} if address else local),
                )
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise RunError(
                f"cannot {'join the Ray cluster at ' + address if address else 'start Ray'}: {error}"
                + (" (one with a token wants RAY_AUTH_MODE=token and its ~/.ray/auth_token here)" if address else "")
            ) from error
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        # One row, one block: see the top of this file.
        context.target_max_block_size = 1
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        remote = ray.remote(num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1)(Coordinator)
        self._coordinator: Any = remote.remote(str(index), deaths)
        self.attempts = CoordinatorClient(self._coordinator)
        """For the stages."""
        resources = ray.cluster_resources()
        self.cpus = max(1, int(resources.get("CPU", 1)))
        self._gpus = int(resources.get("GPU", 0))
        self.most_workers = max(1, min(self.cpus, int(resources.get("memory", 4e9) / CORE_MEMORY)))
        self.round = min(LONGEST, ROUND * self.most_workers)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ray.shutdown()
        self._empty.cleanup()

    def own(self, pairs: list[tuple[str, str]]) -> None:
        """Tell the coordinator which contents the catalog holds: (hash, URI)."""
        ray.get(self._coordinator.own.remote(pairs))

    def begun(self) -> float | None:
        """When the first worker was ready, by this machine's monotonic clock; None before that."""
        begun: float | None = ray.get(self._coordinator.begun.remote())
        return begun

    def fresh(self) -> None:
        """Begin a round."""
        ray.get(self._coordinator.fresh.remote())

    def drain(self) -> None:
        """Let what is in hand finish, and begin nothing more."""
        ray.get(self._coordinator.drain.remote())

    def workers(self, chunks: int) -> int:
        """How many workers so many chunks of work are worth."""
        return max(1, min(self.most_workers, chunks))

    def run(self, pools: Sequence[Pool], chunks: Iterable[pa.Table]) -> Iterator[tuple[Any, int]]:
        """Run chunks of work through pools, one after the other; yields (block, its size in bytes) as rows settle."""
        for block in _blocks(self._plan(pools, chunks)):
            yield block.ref, block.metadata.size_bytes or 0

    def map(self, pool: Pool, chunks: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Run chunks of work through one pool; yields its tables as they come."""
        for block in _blocks(self._plan([pool], chunks)):
            yield ray.get(block.ref)

    def _plan(self, pools: Sequence[Pool], chunks: Iterable[pa.Table]) -> Any:
        """Ray's data, from chunks of work through pools."""
        data = ray.data.from_arrow_refs([ray.put(chunk) for chunk in chunks])
        for pool, options in zip(pools, reservations(pools, self._gpus), strict=True):
            data = data.map_batches(pool.stage, fn_constructor_args=pool.arguments, **options)
        return data

    def submit(self, function: Callable[..., Any], *arguments: Any, tries: int = 3) -> Any:
        """Start a function in some worker of the cluster, again up to `tries` times if that is lost (-1: always); what
        it returns is to be had through `result`."""
        return _remote(function, tries).remote(*arguments)

    def result(self, future: Any) -> Any:
        """Wait for what a future holds."""
        return ray.get(future)

    def ready(self, future: Any) -> bool:
        """Whether `result` would answer at once."""
        return bool(ray.wait([future], timeout=0)[0])


# What Ray raises when a node or a worker is lost beyond its own repair; a new round picks up what is missing.
LOST = (ray.exceptions.RayError,)


def reservations(pools: Sequence[Pool], gpus: int) -> list[dict[str, Any]]:
    """What each pool of a plan is run with, on a cluster of so many GPUs, as options of Ray Data's `map_batches`."""
    # Each GPU gets one worker of every pool that uses it.
    sharing = sum(pool.on_gpu for pool in pools)
    every: list[dict[str, Any]] = []
    for pool in pools:
        on_gpu = pool.on_gpu and gpus > 0
        least, most = (min(pool.least, gpus), min(pool.most, gpus)) if on_gpu else (pool.least, pool.most)
        options = {
            "batch_format": "pyarrow",
            # A block has one row; Ray asks for the size of a batch where a GPU is meant.
            "batch_size": 1 if on_gpu else None,
            "zero_copy_batch": True,
            "num_cpus": RESERVED / len(pools),
            "compute": ray.data.ActorPoolStrategy(
                min_size=least, max_size=most, max_tasks_in_flight_per_actor=pool.in_flight
            ),
        }
        every.append(options | {"num_gpus": 1 / sharing} if on_gpu else options)
    return every


@cache
def _remote(function: Callable[..., Any], tries: int) -> Any:
    return ray.remote(num_cpus=0, max_retries=tries)(function)


def _blocks(data: Any) -> Iterator[Any]:
    """The blocks that come out of a plan, as references with what Ray knows of them."""
    for bundle in data.iter_internal_ref_bundles():
        yield from (block for block in bundle.blocks if block.metadata.num_rows)


def give_back() -> None:
    """Return to the system what the allocator holds without use: glibc keeps what Ray's threads freed in arenas of
    theirs, and the driver would grow by 20 to 40 KB a source, measured. To be called now and then."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def reason(error: BaseException) -> RunError | None:
    """The `RunError` of a worker inside what Ray made of it: that one ends the run, and is no loss."""
    inside: BaseException | None = error
    while inside is not None:
        # Ray's own error is one too, by multiple inheritance, with a traceback for a text.
        if isinstance(inside, RunError) and not isinstance(inside, LOST):
            return inside
        inside = getattr(inside, "cause", None) or inside.__cause__
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what Ray's C++ side writes to stderr while it starts: it announces the log level that silences the rest."""
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _store_bytes() -> int:
    shm = Path("/dev/shm")  # noqa: S108 (Linux's shared memory, where Ray puts its store)
    free = psutil.disk_usage(str(shm)).free if shm.is_dir() else psutil.virtual_memory().available
    return int(max(80e6, min(STORE_BYTES, 0.3 * psutil.virtual_memory().total, 0.8 * free)))
