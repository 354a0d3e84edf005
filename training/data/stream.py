"""The micro-batches of a mixture for one rank of a training run, in an order that nothing can change.

    for step in Stream("demo/mixed", workers=2):
        for batch in step:                      # this rank's micro-batches: all of one bucket
            ...                                 # batch.arrays["clip"]: uint8 [B, 3, T, H, W]

Any number of ranks that divides the mixture's micro-batches, and any number of workers, see the same steps; the state
is a position and the hash of the mixture, and going on from it takes no replay. Needs numpy, pyarrow, fsspec and PyAV
alone.
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
from training.data.clip_loader import Clip, Contents, Form, Settings, contents
from training.data.range_cache import Cache
from training.data.sample_index import Lookup
from training.data.shard_reader import Reader
from training.data.shared_memory import Array
from training.data.worker_pool import Crew

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch, B clips of one bucket. `arrays` hold all of them, `items` what each has of its own, by `form`:

    "pixels": "clip" uint8 [B, 3, T, H, W] RGB, what is to be made; "video", of the same shape, what is given (gray
    where something is missing; not there for tasks that give none); "mask" bool [B, 1, T, H, W], true where something
    is to be made (not there: everywhere). Items: "reference.0", ... uint8 [h, w, 3] RGB.

    "latents": "clip" float16 [B, 16, T', h, w], normalised; "reactive", "inactive" (of the same shape) and "mask", as
    far as the task has them; items: "text" float16 [tokens, dim] (not there: no caption), "reference.0", ... [16, 1,
    h, w].

    "members": items alone, every member as uint8 [bytes].

    `passes` count how often a clip's bucket was gone through before. Arrays are this batch's own (but shared with a
    fork of the process: copy before forking), but for "members" without workers, which are read-only views of the
    shards.
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
    """One step of training: iterate over it for this rank's micro-batches, which are made as they are asked for."""

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
    """A clip that could not be read for a task, and why; the next one of its bucket came in its place."""

    dataset: str
    shard: str
    key: str
    task: str
    why: str

    def __str__(self) -> str:
        return f"clip {self.key} in {self.shard} of {self.dataset}, for the task {self.task}: {self.why}"


@dataclass(frozen=True, slots=True)
class _Planned:
    """A micro-batch before it is read; `ticket`: the workers', if they were asked for it."""

    micro: MicroBatch
    draws: list[Draw]
    clips: list[Clip]
    ticket: int | None = None


class Stream:
    """Endless steps from a mixture. Not for several threads."""

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
        """`form`: see `Batch`; where latents are asked for and none are stored that fit the task and the `model` (its
        `model_folder.fingerprints`), a batch is of pixels, and the log says why. `mixture`: a folder that `vdot-data
        mix` made, local or a URL. `frames`: of pixels, the first so many of each clip, for which conditions are made;
        shorter clips are whole. `rank` of `world`: torchrun's by default. `workers`: processes that prepare
        micro-batches ahead; without, they are made when asked for. `state`: to go on from. `cache`: a folder for what
        is read from object stores, `cache_gb` GB (10^9 bytes) at most. More than `max_damaged` clips that cannot be
        read end the run.

        Raises UsageError where `mixture` is none, `world` does not divide its micro-batches, or the state is another's.
        """
        if form not in get_args(Form) or split not in (TRAIN, HELD_OUT):
            raise UsageError(f"form {form!r} of split {split!r}: there are {get_args(Form)} of {(TRAIN, HELD_OUT)}")
        self.mixture, table = read_all(str(mixture))
        self.order, self._split = Order(self.mixture, table, split), split
        self._lookup = Lookup(table)
        if (rank is None) != (world is None):
            raise UsageError("give rank and world both, or neither: then they are torchrun's")
        self._rank = _told("RANK", 0) if rank is None else rank
        self._world = _told("WORLD_SIZE", 1) if world is None else world
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
        """What could not be read so far, by row and bucket."""
        self.unfit: set[str] = set()
        """Why there were pixels instead of latents so far."""
        self._max_damaged, self._owner = max_damaged, os.getpid()
        if form == "latents" and model is None:
            raise UsageError("latents must be of your model: give its `model_folder.fingerprints(folder)` as `model`")
        if frames is not None and (form != "pixels" or frames < 1):
            raise UsageError(f"the first {frames} frames in the form {form!r}: from 1 on, and of pixels alone")
        self._settings = Settings(form, self.mixture.seed, self.mixture.caption_dropout, dict(model or {}), frames)
        kept = _kept(cache, cache_gb)
        self._reader = Reader(Cache(*kept) if kept else None)
        self._ahead: dict[int, _Planned] = {}
        self._crew: Crew | None = None
        if state is not None:
            self.load_state_dict(state)
        if workers:
            self._crew = Crew(workers, self._settings, kept)

    def state_dict(self) -> dict[str, Any]:
        """Where the run is: after the step that was handed out last. Small, and JSON-able."""
        return {"mixture": self.mixture.hash, "split": self._split, "position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of the same mixture, with any number of ranks and workers. Raises UsageError for
        another's."""
        if not isinstance(state, Mapping) or {*state} != {"mixture", "split", "position"}:
            raise UsageError(f"{state!r} is no state of a stream, as `state_dict` gives it")
        if state["mixture"] != self.mixture.hash:
            raise UsageError(
                f"the state is one of mixture {state['mixture']}, and this one is {self.mixture.hash}. To go on "
                "with a changed mixture: `vdot-data mix NEW.yaml --out DIR --after OLD@POSITION`"
            )
        if state["split"] != self._split:
            raise UsageError(f"the state is one of the part {state['split']!r}, and this stream is of {self._split!r}")
        position, begins = state["position"], self.order.begins.position
        if not isinstance(position, int) or position < begins or (position - begins) % self._per_step:
            raise UsageError(f"no step of mixture {self.mixture.hash} begins at position {position!r}")
        self.position = position
        self._forget([*self._ahead])

    def __iter__(self) -> Iterator[Step]:
        """Steps from the present position on, without end."""
        share = self._per_step // self._world
        while True:
            begin = self.position
            self.position += self._per_step
            first = begin + self._rank * share
            yield Step(begin, self._shown(self.order.bucket(begin)), self, range(first, first + share))

    def batch(self, position: int) -> Batch:
        """The micro-batch at a position, whichever rank's it is.

        Raises RunError when too many clips are damaged, when workers keep dying, and when storage cannot be read.
        """
        if os.getpid() != self._owner:
            raise UsageError("the stream was made in another process: make it where it is used; it has its own workers")
        planned = self._next(position)
        while (found := self._read(planned)).damaged:
            for number, why in found.damaged.items():
                self._note(planned.draws[number].row, planned.clips[number], planned.micro.bucket, why)
            planned = self._asked(self._plan(position))
        if found.unfit and found.unfit not in self.unfit:
            _LOG.warning("pixels instead of latents, for %s and others: %s", planned.micro.bucket.task, found.unfit)
            self.unfit.add(found.unfit)
        keys, passes = (clip.clip_id for clip in planned.clips), (draw.number for draw in planned.draws)
        form = "pixels" if found.unfit else self._settings.form
        told = form, tuple(keys), tuple(passes), found.captions
        return Batch(position, self._shown(planned.micro.bucket), *told, found.arrays, found.items)

    def close(self) -> None:
        """End the workers."""
        if self._crew is not None:
            self._crew.close()
            self._crew = None

    def _next(self, position: int) -> _Planned:
        """The micro-batch that is to be read now; has workers go ahead with those that follow."""
        if self._crew is None:
            return self._plan(position)
        self._crew.look()
        # A step may have been left before its end.
        self._forget([other for other in self._ahead if other < position])
        planned = self._ahead.pop(position, None) or self._asked(self._plan(position))
        following = self._after(max(self._ahead, default=position))
        while self._crew.room(self._size(self.order.bucket(following))):
            self._ahead[following] = self._asked(self._plan(following))
            following = self._after(following)
        return planned

    def _asked(self, planned: _Planned) -> _Planned:
        """The same, with a ticket if a worker can begin with it; while they are still starting none can."""
        size = self._size(planned.micro.bucket)
        if self._crew is None or not self._crew.room(size):
            return planned
        return replace(planned, ticket=self._crew.ask(planned.clips, size))

    def _size(self, bucket: Bucket) -> int:
        """About how many bytes a micro-batch of a bucket has: clip, what is given of it, and mask, as pixels."""
        frames = self._shown(bucket).frames
        return 7 * frames * bucket.height * bucket.width * self.mixture.step.count_clips(bucket.tokens)

    def _shown(self, bucket: Bucket) -> Bucket:
        """A bucket as it is handed out: of as many frames as are asked for."""
        frames = self._settings.frames
        return bucket if frames is None else replace(bucket, frames=min(frames, bucket.frames))

    def _forget(self, positions: list[int]) -> None:
        for position in positions:
            planned = self._ahead.pop(position)
            assert self._crew is not None
            assert planned.ticket is not None
            self._crew.drop(planned.ticket)

    def _read(self, planned: _Planned) -> Contents:
        if planned.ticket is not None:
            assert self._crew is not None
            return self._crew.take(planned.ticket)
        try:
            found = contents(planned.clips, self._settings, self._reader)
            # As they come from workers: what may be changed must not depend on who was quicker.
            return found if self._crew is None else found.writable()
        except OSError as error:
            raise RunError(f"a clip cannot be read: {error}") from error

    def _plan(self, position: int) -> _Planned:
        micro = self.order.at(position)
        draws = self.order.draw_clips(micro)
        for index, draw in enumerate(draws):
            attempt = 0
            while (draw.row, micro.bucket) in self.damaged:
                attempt += 1
                if attempt == self.order.count_clips(micro.bucket):
                    last, bucket = [*self.damaged.values()][-1], micro.bucket
                    raise RunError(
                        f"no clip is left of {bucket.dataset} for the task {bucket.task} in {bucket.frames} frames of "
                        f"{bucket.height} x {bucket.width}: all {attempt} are damaged; the last: {last}. `vdot-data "
                        "verify --mark-failed` and `retry` make them again; or `mix` without them, `--after` this one"
                    )
                draw = self.order.draw_replacement(micro, index, attempt)
            draws[index] = draw
        return _Planned(micro, draws, [self._clip(draw, micro.bucket) for draw in draws])

    def _clip(self, draw: Draw, bucket: Bucket) -> Clip:
        url, _ = self.mixture.datasets[bucket.dataset]
        clip_id, places = self._lookup.clip_id(draw.row), self._lookup.places(draw.row)
        shape = bucket.frames, bucket.height, bucket.width
        parts = self.mixture.parts[bucket.task]
        return Clip(url, clip_id, places, bucket.task, parts, draw.number, shape, bucket.references)

    def _after(self, position: int) -> int:
        """The position of this rank's next micro-batch."""
        share = self._per_step // self._world
        within = (position - self.order.begins.position) % self._per_step
        return position + 1 + (self._per_step - share if within == (self._rank + 1) * share - 1 else 0)

    def _note(self, row: int, clip: Clip, bucket: Bucket, why: str) -> None:
        damaged = Damaged(clip.dataset, clip.places[0].shard, clip.clip_id, clip.task, why)
        self.damaged[row, bucket] = damaged
        _LOG.warning("left out: %s", damaged)
        if len({known for known, _ in self.damaged}) > self._max_damaged:
            raise RunError(f"more than {self._max_damaged} clips cannot be read; the last: {damaged}")


def _kept(cache: str | Path | None, gigabytes: float) -> tuple[str, int] | None:
    """Folder and bytes of a cache. Raises UsageError for one that cannot be."""
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


def _told(name: str, default: int) -> int:
    """A number that torchrun puts into the environment."""
    told = os.environ.get(name, str(default))
    try:
        return int(told)
    except ValueError:
        raise UsageError(f"the environment's {name} is {told!r}, which is no number; or give rank and world") from None
