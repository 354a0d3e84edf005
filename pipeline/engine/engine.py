"""Runs tables of work through pools of Ray workers, sized from the cluster, and yields settled blocks.

Ray Data moves the rows. Every row is a block of its own, so that a clip moves on as soon as it is made and a lost
worker loses one clip.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import pyarrow as pa

from pipeline.engine.cluster import connection_error
from pipeline.engine.configured_ray import ray
from pipeline.engine.coordinator import Coordinator, CoordinatorClient
from pipeline.errors import RunError

# A worker of each stage holds its networks and one decoder process with the frames that it keeps: 1.7 GB in all,
# measured.
CORE_MEMORY = 1.7e9
# Share of a core that the stages reserve together. Each core gets one worker of every stage; the operating system
# shares the core between them, so no core idles while any stage has work. The rest lets Ray's own tasks be placed.
RESERVED_SHARE = 0.9
# The object store holds encoded clips in flight; more would only delay backpressure.
STORE_BYTES = 1 << 30
# One thread each, as there is a worker per core. And glibc keeps freed memory up to these bytes, in one arena:
# returning pages and taking them again for a network's activations cost 15 % of TransNetV2's time, measured, and did
# not lower peak memory.
WORKER_ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
}
# Pieces of work that one plan takes, per worker and at most. The driver grows by about 10 KB a piece while a plan lasts
# (Ray Data keeps metadata of every block) and shrinks again at the end, measured; a new plan takes 6 seconds.
ROUND_WORK_PER_WORKER = 1_000
MAX_ROUND_WORK = 40_000


@dataclass(frozen=True, slots=True)
class Pool:
    """Workers that each make `stage(*arguments)` once, then call it with tables of up to `rows_per_call` rows.

    There are `min_workers` to `max_workers` of them, as work comes; `in_flight` tables are queued for each. Where there
    are GPUs, a worker that is `on_gpu` has a share of one.
    """

    stage: type
    arguments: tuple[Any, ...]
    min_workers: int
    max_workers: int
    in_flight: int
    on_gpu: bool = False
    rows_per_call: int = 1


class Engine:
    """A connection to Ray, local or remote, that runs tables of work through pools of workers. A context manager."""

    def __init__(self, address: str | None, cpus: int | None, content_index_path: Path, max_deaths: int) -> None:
        """`address`: a running cluster, or None for a local Ray of this process's own, with `cpus` CPUs
        (None: all). `content_index_path`, `max_deaths`: see `Coordinator`.

        Raises `RunError` when the cluster cannot be reached.
        """
        # Workers must not import a folder `pipeline/` of the user's from the current directory.
        self._empty_folder = tempfile.TemporaryDirectory(prefix="vdot-empty-")
        local_options: dict[str, Any] = {
            "object_store_memory": _choose_store_bytes(),
            "include_dashboard": False,
            "num_cpus": cpus,
        }
        error_text = connection_error(address) if address else None
        if error_text:
            raise RunError(f"cannot join the Ray cluster at {address}: {error_text}")
        try:
            with _silence_stderr():
                ray.init(
                    address=address or "local",  # a separate one, even where a cluster runs on this machine
                    runtime_env={"working_dir": self._empty_folder.name, "env_vars": WORKER_ENVIRONMENT},
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    **({} if address else local_options),
                )
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            hint = " (a cluster with a token needs RAY_AUTH_MODE=token and its ~/.ray/auth_token here)"
            raise RunError(
                f"cannot {'join the Ray cluster at ' + address if address else 'start Ray'}: {error}"
                + (hint if address else "")
            ) from error
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        # One row, one block: see the top of this file.
        context.target_max_block_size = 1
        strategies = ray.util.scheduling_strategies
        affinity = strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(num_cpus=0, scheduling_strategy=affinity, max_restarts=-1, max_task_retries=-1)(Coordinator)
        self._coordinator: Any = actor.remote(str(content_index_path), max_deaths)
        self.attempts = CoordinatorClient(self._coordinator)
        """For the stages."""
        resources = ray.cluster_resources()
        self.cpus = max(1, int(resources.get("CPU", 1)))
        self._gpus = int(resources.get("GPU", 0))
        self._stdout = redirect_stdout(sys.stderr)
        self._memory = float(resources.get("memory", 4e9))
        self.round_size = min(MAX_ROUND_WORK, ROUND_WORK_PER_WORKER * self.count_workers(self.cpus))

    def __enter__(self) -> Engine:
        # A thread of Ray's prints to stdout when a worker dies, whatever `log_to_driver` says; stdout is for answers.
        self._stdout.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ray.shutdown()
        self._stdout.__exit__(kind, error, trace)
        self._empty_folder.cleanup()

    def add_owners(self, pairs: list[tuple[str, str]]) -> None:
        """Tell the coordinator which contents the catalog holds: (hash, URI)."""
        ray.get(self._coordinator.add_owners.remote(pairs))

    def read_first_start_s(self) -> float | None:
        """When the first worker was ready, by this machine's monotonic clock; None before that."""
        time_s: float | None = ray.get(self._coordinator.read_first_start_s.remote())
        return time_s

    def begin_round(self) -> None:
        """Begin a round."""
        ray.get(self._coordinator.begin_round.remote())

    def drain(self) -> None:
        """Let work in progress finish, and begin nothing more."""
        ray.get(self._coordinator.drain.remote())

    def count_workers(self, chunks: int, extra_bytes: float = 0.0) -> int:
        """How many workers of each stage to use for this many chunks of work, when those of one core need so many bytes
        more than usual together."""
        return max(1, min(self.cpus, int(self._memory / (CORE_MEMORY + extra_bytes)), chunks))

    def run(self, pools: Sequence[Pool], chunks: Iterable[pa.Table]) -> Iterator[tuple[Any, int]]:
        """Run chunks of work through pools, one after the other; yields (block, its size in bytes) as rows settle."""
        for block in _iterate_blocks(self._plan(pools, chunks)):
            yield block.ref, block.metadata.size_bytes or 0

    def map_tables(self, pool: Pool, chunks: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Run chunks of work through one pool; yields its tables as they come."""
        for block in _iterate_blocks(self._plan([pool], chunks)):
            yield ray.get(block.ref)

    def _plan(self, pools: Sequence[Pool], chunks: Iterable[pa.Table]) -> Any:
        """A Ray dataset: chunks of work through pools."""
        data = ray.data.from_arrow_refs([ray.put(chunk) for chunk in chunks])
        for pool, options in zip(pools, pool_options(pools, self._gpus), strict=True):
            data = data.map_batches(pool.stage, fn_constructor_args=pool.arguments, **options)
        return data

    def submit(self, function: Callable[..., Any], *arguments: Any, tries: int = 3) -> Any:
        """Start a function in a worker of the cluster, again up to `tries` times if that is lost (-1: always);
        `wait_for` returns its value."""
        return _make_remote(function, tries).remote(*arguments)

    def wait_for(self, future: Any) -> Any:
        """Wait for the value of a future."""
        return ray.get(future)

    def is_ready(self, future: Any) -> bool:
        """Whether `wait_for` would return at once."""
        return bool(ray.wait([future], timeout=0)[0])


def ray_errors() -> tuple[type[Exception], ...]:
    """What Ray raises when a node or a worker is lost beyond its own repair; a new round picks up what is missing."""
    return (ray.exceptions.RayError,)


def pool_options(pools: Sequence[Pool], gpus: int) -> list[dict[str, Any]]:
    """The options of Ray Data's `map_batches` for each pool of a plan, on a cluster with this many GPUs."""
    # Each GPU gets one worker of every pool that uses it.
    sharing = sum(pool.on_gpu for pool in pools)
    all_options: list[dict[str, Any]] = []
    for pool in pools:
        on_gpu = pool.on_gpu and gpus > 0
        min_size, max_size = (
            (min(pool.min_workers, gpus), min(pool.max_workers, gpus))
            if on_gpu
            else (pool.min_workers, pool.max_workers)
        )
        options = {
            "batch_format": "pyarrow",
            # A block has one row; Ray wants the size of a batch where a GPU is requested.
            "batch_size": pool.rows_per_call if on_gpu or pool.rows_per_call > 1 else None,
            "zero_copy_batch": True,
            "num_cpus": RESERVED_SHARE / len(pools),
            "compute": ray.data.ActorPoolStrategy(
                min_size=min_size, max_size=max_size, max_tasks_in_flight_per_actor=pool.in_flight
            ),
        }
        all_options.append(options | {"num_gpus": 1 / sharing} if on_gpu else options)
    return all_options


@cache
def _make_remote(function: Callable[..., Any], tries: int) -> Any:
    return ray.remote(num_cpus=0, max_retries=tries)(function)


def _iterate_blocks(data: Any) -> Iterator[Any]:
    """The blocks that come out of a plan, as references with Ray's metadata.

    This call, which Ray offers to developers of libraries and may change, is the only one that hands on a reference as
    soon as its block is settled. `iter_batches` copies every block to this process, though the driver only passes
    clips on to the worker that packs them; `to_arrow_refs` returns when the whole plan is done. `pyproject.toml`
    therefore bounds Ray to the versions that `test_engine.py` was run with.
    """
    for bundle in data.iter_internal_ref_bundles():
        yield from (block for block in bundle.blocks if block.metadata.num_rows)


def trim_memory() -> None:
    """Return unused memory of the allocator to the system. Call this now and then: glibc keeps what Ray's threads
    freed in their arenas, and the driver would grow by 20 to 40 KB a source, measured."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def find_run_error(error: BaseException) -> RunError | None:
    """The `RunError` of a worker inside Ray's error, if any: it ends the run, and no worker was lost."""
    cause: BaseException | None = error
    while cause is not None:
        # Ray's own error is one too, by multiple inheritance, with a traceback as its text.
        if isinstance(cause, RunError) and not isinstance(cause, ray_errors()):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return None


@contextmanager
def _silence_stderr() -> Iterator[None]:
    """Drop what Ray's C++ side writes to stderr while it starts: it announces the log level that silences it later."""
    stderr_copy = os.dup(2)
    with Path(os.devnull).open("w") as null_device:
        os.dup2(null_device.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr_copy, 2)
            os.close(stderr_copy)


def _choose_store_bytes() -> int:
    shm = Path("/dev/shm")  # noqa: S108 (Linux's shared memory, where Ray puts its store)
    free = psutil.disk_usage(str(shm)).free if shm.is_dir() else psutil.virtual_memory().available
    return int(max(80e6, min(STORE_BYTES, 0.3 * psutil.virtual_memory().total, 0.8 * free)))
