"""The Ray plan: work in, settled blocks out, sized from whatever cluster it runs on.

Ray Data moves the rows: `CutStage`, which annotates the clips of short sources itself -> one `AnnotateStage` per list
in the recipe -> the driver, which sees references only. Every row is a block of its own, so that a clip goes on the
moment it is made and a lost worker loses one clip.
"""

from __future__ import annotations

import ctypes
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import pyarrow as pa

from pipeline.engine.cluster import unreachable
from pipeline.errors import RunError
from pipeline.formats.schema import BASE_LAYER
from pipeline.recipe import registry
from pipeline.recipe.blueprint import Blueprint
from pipeline.stages.annotate import AnnotateStage
from pipeline.stages.cut import CutStage
from pipeline.storage.folder import Folder

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

from pipeline.engine.coordinator import Watch
from pipeline.stages.pack import ray_pack, ray_peek

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


class Engine:
    """A connection to Ray, local or remote, that runs blueprints. A context manager."""

    def __init__(self, address: str | None, cpus: int | None, out: Folder, index: Path, deaths: int) -> None:
        """`address`: a running cluster, or None for a local Ray of this process's own, with `cpus` CPUs
        (None: all). `index`: see `Watch`.

        Raises `RunError` when the cluster cannot be reached.
        """
        self._out = out
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
        remote = ray.remote(num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1)(Watch)
        self.watch: Any = remote.remote(str(index), deaths)
        resources = ray.cluster_resources()
        self.cpus = max(1, int(resources.get("CPU", 1)))
        self._gpus = int(resources.get("GPU", 0))
        self._pool = max(1, min(self.cpus, int(resources.get("memory", 4e9) / CORE_MEMORY)))
        self.round = min(LONGEST, ROUND * self._pool)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ray.shutdown()
        self._empty.cleanup()

    def own(self, pairs: list[tuple[str, str]]) -> None:
        """Tell the watch which contents the catalog holds: (hash, URI)."""
        ray.get(self.watch.own.remote(pairs))

    def begun(self) -> float | None:
        """When the first worker was ready, by this machine's monotonic clock; None before that."""
        begun: float | None = ray.get(self.watch.begun.remote())
        return begun

    def fresh(self) -> None:
        """Begin a round."""
        ray.get(self.watch.fresh.remote())

    def drain(self) -> None:
        """Let what is in hand finish, and begin nothing more."""
        ray.get(self.watch.drain.remote())

    def run(self, blueprint: Blueprint, chunks: Iterable[pa.Table]) -> Iterator[tuple[Any, int, Any]]:
        """Run the plan over chunks of work; yields (block, its size in bytes, its records to come) as rows settle."""
        data, workers = self._given(chunks)
        # A layer's one stage is done by the worker that opens the clip.
        stages = range(blueprint.layer != BASE_LAYER, len(blueprint.stages))
        on_gpu = [self._gpus > 0 and any(map(registry.takes_gpu, stage)) for stage in blueprint.stages]
        # Each GPU gets one worker of every pool that uses it; the one that cuts holds the first stage too.
        sharing = on_gpu[0] + sum(on_gpu[number] for number in stages)

        def placed(number: int, least: int, most: int, in_flight: int) -> dict[str, Any]:
            """Where the workers of a pool that holds this stage run, and how many there are."""
            options = _options(1 + len(stages))
            if on_gpu[number]:
                least, most = min(least, self._gpus), min(most, self._gpus)
                # A block has one row; Ray asks for the size of a batch where a GPU is meant.
                options |= {"num_gpus": 1 / sharing, "batch_size": 1}
            return options | {"compute": _actors(least, most, in_flight)}

        data = data.map_batches(
            CutStage,
            fn_constructor_args=(blueprint, self._out, self.watch),
            # One source at a time: one that waits behind another could be done by a worker that is idle at the end.
            **placed(0, workers, workers, 1),
        )
        for number in stages:
            data = data.map_batches(
                AnnotateStage,
                fn_constructor_args=(blueprint, number, self.watch),
                # One source may have a thousand clips: this pool grows with what comes. Two in flight: the next clip is
                # already there when a worker is done with one.
                **placed(number, 1 if number == 0 else workers, self._pool, 2),
            )
        for block in _blocks(data):
            yield block.ref, block.metadata.size_bytes or 0, ray_peek.remote(block.ref)

    def map(self, stage: type, arguments: tuple[Any, ...], chunks: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Run one stage, made with `arguments` once per worker, over chunks of work; yields its tables as they come."""
        data, workers = self._given(chunks)
        pool = _actors(workers, workers, 2)
        for block in _blocks(data.map_batches(stage, fn_constructor_args=arguments, compute=pool, **_options(1))):
            yield ray.get(block.ref)

    def _given(self, chunks: Iterable[pa.Table]) -> tuple[Any, int]:
        """Chunks of work as Ray's data, and how many workers they are worth."""
        references = [ray.put(chunk) for chunk in chunks]
        return ray.data.from_arrow_refs(references), max(1, min(self._pool, len(references)))

    def pack(self, blueprint: Blueprint, run_id: str, blocks: list[Any]) -> Any:
        """Start writing settled blocks into shards; the answer, through `result`, is their catalog rows."""
        return ray_pack.remote(self._out, run_id, blueprint.layer, *blocks)

    def result(self, future: Any) -> Any:
        """Wait for what a future holds."""
        return ray.get(future)

    def ready(self, future: Any) -> bool:
        """Whether `result` would answer at once."""
        return bool(ray.wait([future], timeout=0)[0])


# What Ray raises when a node or a worker is lost beyond its own repair; a new round picks up what is missing.
LOST = (ray.exceptions.RayError,)


def _options(stages: int) -> dict[str, Any]:
    """What each of so many stages is run with."""
    return {"batch_format": "pyarrow", "batch_size": None, "zero_copy_batch": True, "num_cpus": RESERVED / stages}


def _actors(least: int, most: int, in_flight: int) -> Any:
    return ray.data.ActorPoolStrategy(min_size=least, max_size=most, max_tasks_in_flight_per_actor=in_flight)


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
