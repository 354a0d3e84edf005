"""The micro-batches of a mixture for one rank of a training run, in a fixed order.

    for step in Stream("demo/mixed", workers=2):
        for batch in step:                      # this rank's micro-batches: all of one bucket
            ...                                 # batch.arrays["clip"]: uint8 [B, 3, T, H, W]

Any number of ranks that divides the mixture's micro-batches, and any number of workers, see the same steps. The state
is a position and the mixture's hash, and resuming from it needs no replay. Needs only numpy, pyarrow, fsspec and PyAV.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from pipeline.errors import RunError, UsageError
from pipeline.mixture.mixture import HELD_OUT, TRAIN, Bucket, read_all
from pipeline.mixture.order import Draw, MicroBatch, Order
from pipeline.storage.object_store import describe_error
from training.data.clip_loader import Clip, Contents, Form, Settings, read_batch
from training.data.range_cache import Cache
from training.data.sample_index import Lookup
from training.data.shard_reader import Reader
from training.data.shared_memory import Array
from training.data.worker_pool import WorkerPool

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch, B clips of one bucket. `arrays` are of all clips, `items` of single clips, by `form`:

    "pixels": "clip" uint8 [B, 3, T, H, W] RGB, the target; "video", of the same shape, the condition (gray where
    something is missing; absent for tasks without one); "mask" bool [B, 1, T, H, W], true where content is generated
    (absent: everywhere). Items: "reference.0", ... uint8 [h, w, 3] RGB.

    "latents": "clip" float16 [B, 16, T', h, w], normalised; "reactive", "inactive" (of the same shape) and "mask", if
    the task has them; items: "text" float16 [tokens, dim] (absent: no caption), "reference.0", ... [16, 1, h, w].

    "members": only items, every member as uint8 [bytes].

    `passes`: how many passes over its bucket came before, for each clip. The batch owns its arrays (but shares them
    with a fork of the process: copy before forking), except for "members" without workers, which are read-only views
    of the shards.
    """

    position: int
    bucket: Bucket
    form: Form
    keys: tuple[str, ...]
    passes: tuple[int, ...]
    captions: tuple[str, ...]
    arrays: dict[str, Array]
    items: tuple[dict[str, Array], ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of training: iterate over it for this rank's micro-batches, which are read on demand."""

    position: int
    bucket: Bucket
    _stream: Stream = field(repr=False)
    _positions: range = field(repr=False)

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[Batch]:
        return map(self._stream.batch, self._positions)


@dataclass(frozen=True, slots=True)
class Damaged:
    """A clip that could not be read for a task, and why; the next one of its bucket replaces it."""

    dataset: str
    shard: str
    key: str
    task: str
    why: str

    def __str__(self) -> str:
        return f"clip {self.key} in {self.shard} of {self.dataset}, for the task {self.task}: {self.why}"


@dataclass(frozen=True, slots=True)
class _PlannedBatch:
    """A micro-batch before it is read; `ticket`: of the worker pool, if it was submitted."""

    micro: MicroBatch
    draws: list[Draw]
    clips: list[Clip]
    ticket: int | None = None


class Stream:
    """Endless steps from a mixture. Not thread-safe."""

    def __init__(
        self,
        mixture: str | Path,
        *,
        form: Form = "pixels",
        model: Mapping[str, str] | None = None,
        frames: int | None = None,
        rank: int | None = None,
        world: int | None = None,
        workers: int = 0,
        state: Mapping[str, Any] | None = None,
        split: str = TRAIN,
        cache: str | Path | None = None,
        cache_gb: float = 64.0,
        max_damaged: int = 100,
    ) -> None:
        """`form`: see `Batch`; if no stored latents fit the task and the `model` (its `model_folder.fingerprints`), a
        batch is of pixels instead, and the log says why. `mixture`: a folder made by `vdot-data mix`, local or a URL.
        `frames`: the number of frames to use of each clip's pixels and its conditions; shorter clips are used in full.
        `rank` of `world`: torchrun's by default. `workers`: processes that prepare micro-batches ahead; with 0 they are
        read on demand. `state`: to resume from. `cache`: a folder that caches reads from object stores, up to
        `cache_gb` GB (10^9 bytes). More than `max_damaged` unreadable clips end the run.

        Raises UsageError if `mixture` is not a mixture, `world` does not divide its micro-batches, or the state is of
        another mixture.
        """
        if form not in get_args(Form) or split not in (TRAIN, HELD_OUT):
            raise UsageError(f"form {form!r} of split {split!r}: there are {get_args(Form)} of {(TRAIN, HELD_OUT)}")
        self.mixture, table = read_all(str(mixture))
        self.order, self._split = Order(self.mixture, table, split), split
        self._lookup = Lookup(table)
        if (rank is None) != (world is None):
            raise UsageError("give both rank and world, or neither to use torchrun's")
        self._rank = _read_environment("RANK", 0) if rank is None else rank
        self._world = _read_environment("WORLD_SIZE", 1) if world is None else world
        self._per_step = self.mixture.step.micro_batches
        if workers < 0:
            raise UsageError(f"workers must be 0 or more, not {workers}")
        if not 0 <= self._rank < self._world:
            raise UsageError(f"rank {self._rank} of {self._world}: ranks count from 0 to {self._world - 1}")
        if self._per_step % self._world:
            raise UsageError(
                f"{self._world} ranks do not divide the {self._per_step} micro-batches of a step; `step: "
                "{micro_batches: N}` in the mixture's YAML says how many there are"
            )
        self.position = self.order.begins.position
        """The position of the next step."""
        self.damaged: dict[tuple[int, Bucket], Damaged] = {}
        """The clips that could not be read so far, by row and bucket."""
        self.latents_unusable_reasons: set[str] = set()
        """The reasons so far why batches were of pixels instead of latents."""
        self._max_damaged, self._owner = max_damaged, os.getpid()
        if form == "latents" and model is None:
            raise UsageError("latents must be of your model: pass its `model_folder.fingerprints(folder)` as `model`")
        if frames is not None and (form != "pixels" or frames < 1):
            raise UsageError(f"the first {frames} frames in the form {form!r}: at least 1, and of pixels alone")
        self._settings = Settings(form, self.mixture.seed, self.mixture.caption_dropout, dict(model or {}), frames)
        limits = _cache_limits(cache, cache_gb)
        self._reader = Reader(Cache(*limits) if limits else None)
        self._prefetched: dict[int, _PlannedBatch] = {}
        self._worker_pool: WorkerPool | None = None
        if state is not None:
            self.load_state_dict(state)
        if workers:
            self._worker_pool = WorkerPool(workers, self._settings, limits)

    def state_dict(self) -> dict[str, Any]:
        """The position after the last step that was yielded. Small and JSON-able."""
        return {"mixture": self.mixture.hash, "split": self._split, "position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state of the same mixture, with any number of ranks and workers. Raises UsageError for a state
        of another mixture."""
        if not isinstance(state, Mapping) or {*state} != {"mixture", "split", "position"}:
            raise UsageError(f"{state!r} is not a stream state as `state_dict` returns it")
        if state["mixture"] != self.mixture.hash:
            raise UsageError(
                f"the state belongs to mixture {state['mixture']}, and this one is {self.mixture.hash}. To continue "
                "with a changed mixture: `vdot-data mix NEW.yaml --out DIR --after OLD@POSITION`"
            )
        if state["split"] != self._split:
            raise UsageError(f"the state is of the split {state['split']!r}, and this stream is of {self._split!r}")
        position, begins = state["position"], self.order.begins.position
        if not isinstance(position, int) or position < begins or (position - begins) % self._per_step:
            raise UsageError(f"no step of mixture {self.mixture.hash} begins at position {position!r}")
        self.position = position
        self._forget([*self._prefetched])

    def __iter__(self) -> Iterator[Step]:
        """Steps from the current position on, without end."""
        share = self._per_step // self._world
        while True:
            begin = self.position
            self.position += self._per_step
            first = begin + self._rank * share
            yield Step(begin, self._cap_frames(self.order.bucket(begin)), self, range(first, first + share))

    def batch(self, position: int) -> Batch:
        """The micro-batch at a position, of any rank.

        Raises RunError if too many clips are damaged, workers keep dying, or storage cannot be read.
        """
        if os.getpid() != self._owner:
            raise UsageError(
                "the stream was made in another process: create it where it is used, as it has workers of its own"
            )
        planned = self._next_batch(position)
        while (contents := self._read(planned)).damaged:
            for number, reason in contents.damaged.items():
                self._record_damage(planned.draws[number].row, planned.clips[number], planned.micro.bucket, reason)
            planned = self._submit(self._plan(position))
        reason = contents.latents_unusable_reason
        if reason and reason not in self.latents_unusable_reasons:
            _LOG.warning("pixels instead of latents, for %s and others: %s", planned.micro.bucket.task, reason)
            self.latents_unusable_reasons.add(reason)
        return Batch(
            position=position,
            bucket=self._cap_frames(planned.micro.bucket),
            form="pixels" if contents.latents_unusable_reason else self._settings.form,
            keys=tuple(clip.clip_id for clip in planned.clips),
            passes=tuple(draw.pass_index for draw in planned.draws),
            captions=contents.captions,
            arrays=contents.arrays,
            items=contents.items,
        )

    def close(self) -> None:
        """Stop the workers."""
        if self._worker_pool is not None:
            self._worker_pool.close()
            self._worker_pool = None

    def _next_batch(self, position: int) -> _PlannedBatch:
        """The micro-batch to read now; workers prefetch the following ones."""
        if self._worker_pool is None:
            return self._plan(position)
        self._worker_pool.collect()
        # The caller may have left a step before its end.
        self._forget([earlier for earlier in self._prefetched if earlier < position])
        planned = self._prefetched.pop(position, None) or self._submit(self._plan(position))
        following = self._next_position(max(self._prefetched, default=position))
        while self._worker_pool.has_room(self._estimate_bytes(self.order.bucket(following))):
            self._prefetched[following] = self._submit(self._plan(following))
            following = self._next_position(following)
        return planned

    def _submit(self, planned: _PlannedBatch) -> _PlannedBatch:
        """The same, with a ticket if the pool has room for it; it has none while all workers are still starting."""
        size = self._estimate_bytes(planned.micro.bucket)
        if self._worker_pool is None or not self._worker_pool.has_room(size):
            return planned
        return replace(planned, ticket=self._worker_pool.submit(planned.clips, size))

    def _estimate_bytes(self, bucket: Bucket) -> int:
        """The approximate bytes of a micro-batch of a bucket: clip, condition and mask, as pixels."""
        frames = self._cap_frames(bucket).frames
        return 7 * frames * bucket.height * bucket.width * self.mixture.step.count_clips(bucket.tokens)

    def _cap_frames(self, bucket: Bucket) -> Bucket:
        """A bucket with its frames limited to those requested."""
        frames = self._settings.frames
        return bucket if frames is None else replace(bucket, frames=min(frames, bucket.frames))

    def _forget(self, positions: list[int]) -> None:
        for position in positions:
            planned = self._prefetched.pop(position)
            assert self._worker_pool is not None
            assert planned.ticket is not None
            self._worker_pool.cancel(planned.ticket)

    def _read(self, planned: _PlannedBatch) -> Contents:
        if planned.ticket is not None:
            assert self._worker_pool is not None
            return self._worker_pool.take(planned.ticket)
        try:
            contents = read_batch(planned.clips, self._settings, self._reader)
            # As batches from workers are: whether arrays are writable must not depend on timing.
            return contents if self._worker_pool is None else contents.writable()
        except OSError as error:
            raise RunError(f"a clip cannot be read: {error}") from error

    def _plan(self, position: int) -> _PlannedBatch:
        micro_batch = self.order.at(position)
        draws = self.order.draw_clips(micro_batch)
        for index, draw in enumerate(draws):
            attempt = 0
            while (draw.row, micro_batch.bucket) in self.damaged:
                attempt += 1
                if attempt == self.order.count_clips(micro_batch.bucket):
                    last, bucket = [*self.damaged.values()][-1], micro_batch.bucket
                    raise RunError(
                        f"no clip is left in {bucket.dataset} for the task {bucket.task} in {bucket.frames} frames of "
                        f"{bucket.height} x {bucket.width}: all {attempt} are damaged; the last: {last}. `vdot-data "
                        "verify --mark-failed` and `retry` make them again; or `mix` without them, `--after` this one"
                    )
                draw = self.order.draw_replacement(micro_batch, index, attempt)
            draws[index] = draw
        return _PlannedBatch(micro_batch, draws, [self._describe_clip(draw, micro_batch.bucket) for draw in draws])

    def _describe_clip(self, draw: Draw, bucket: Bucket) -> Clip:
        url, _ = self.mixture.datasets[bucket.dataset]
        clip_id, places = self._lookup.clip_id(draw.row), self._lookup.places(draw.row)
        shape = bucket.frames, bucket.height, bucket.width
        parts = self.mixture.parts[bucket.task]
        return Clip(url, clip_id, places, bucket.task, parts, draw.pass_index, shape, bucket.references)

    def _next_position(self, position: int) -> int:
        """The position of this rank's next micro-batch."""
        share = self._per_step // self._world
        within = (position - self.order.begins.position) % self._per_step
        return position + 1 + (self._per_step - share if within == (self._rank + 1) * share - 1 else 0)

    def _record_damage(self, row: int, clip: Clip, bucket: Bucket, reason: str) -> None:
        damaged = Damaged(clip.dataset, clip.places[0].shard, clip.clip_id, clip.task, reason)
        self.damaged[row, bucket] = damaged
        _LOG.warning("left out: %s", damaged)
        if len({row_number for row_number, _ in self.damaged}) > self._max_damaged:
            raise RunError(f"more than {self._max_damaged} clips cannot be read; the last: {damaged}")


def _cache_limits(cache: str | Path | None, gigabytes: float) -> tuple[str, int] | None:
    """Folder and byte limit of a cache. Raises UsageError if they are invalid."""
    if cache is None:
        return None
    if not 0 < gigabytes < 1e9:
        raise UsageError(f"cache_gb is {gigabytes}: it must be above 0")
    folder = Path(cache).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the cache {folder} cannot be made: {describe_error(error)}") from error
    return str(folder), int(gigabytes * 1e9)


def _read_environment(name: str, default: int) -> int:
    """An integer from torchrun's environment variables."""
    value = os.environ.get(name, str(default))
    try:
        return int(value)
    except ValueError:
        raise UsageError(
            f"the environment's {name} is {value!r}, which is not a number: pass rank and world instead"
        ) from None
