"""A training run from its first step to its last: data in, steps, logs, samples and checkpoints out, and on again.

OUT/config.yaml  log.jsonl  tensorboard/  samples/  checkpoints/step-N/
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from torch import Tensor

from pipeline.errors import RunError, StoppedError, UsageError
from pipeline.lock import alone
from pipeline.mixture import HELD_OUT
from pipeline.storage import Folder
from training import checkpoint, model_folder, schedule
from training.config import Distill, Run, Teach, same
from training.examples import Example, Examples
from training.models import Denoiser
from training.parallel import World
from training.signals import Log, Saturation, Signals
from training.stream import Stream
from training.updates import MovingAverage, Updates

_LOG = logging.getLogger("vdot_data")


class Method(Protocol):
    """What is done at a step: `teach.Teaching`, `distill.Distillation`."""

    student: Denoiser
    updates: dict[str, Updates]
    average: MovingAverage

    def step(self, number: int, examples: Sequence[Example], signals: Signals) -> None:
        """One step, its number from 0 on."""


def tensors(method: Method) -> dict[str, Tensor]:
    """All that a method has learnt, by name, for a checkpoint."""
    found = method.average.tensors("student")
    for role, updates in method.updates.items():
        found |= updates.tensors(role)
    return found


def train(
    config: Run,
    method: Method,
    examples: Examples,
    folder: Path,
    out: Path,
    world: World,
    *,
    resume: str | None,
    evaluate: Callable[[int, Path, Log | None], None],
) -> None:
    """Train until `config.steps` and keep the last checkpoint. `folder`: the model's. `out`: a folder that is `owned`.
    `resume`: "latest" or a checkpoint. `evaluate`: called, the average in place, with a step, where its samples go, and
    the log of the first process.

    Raises RunError where it cannot go on, and names the last checkpoint; UsageError for a resume that does not fit;
    StoppedError after SIGTERM or Ctrl-C, with a checkpoint of where it stood.
    """
    checkpoints, evaluation = out / "checkpoints", config.evaluation
    # Read by one: it may be tens of gigabytes on a disk that all share.
    prints = world.gathered(_base(config, folder) if world.first else None)[0]
    begun, state = _begin(config, method, checkpoints, resume, prints, folder)
    identity = _identity(config)
    with closing(Log(out, begun)) if world.first else nullcontext() as log:

        def look(step: int) -> None:
            helps = "`evaluation: {every: 0}` goes on without samples"
            with _explained(f"sampling after step {step}", checkpoints, helps), method.average.worn():
                evaluate(step, samples(out, step), log)

        # It may have ended between a checkpoint and its samples.
        if begun and evaluation.due(begun) and not world.gathered(samples(out, begun).is_file())[0]:
            look(begun)
        if begun >= config.steps:
            _LOG.info("nothing is left to do: step %d of %d is done", begun, config.steps)
            return
        if world.first:
            (out / "config.yaml").write_text(yaml.safe_dump(identity["config"], sort_keys=False))
        with closing(_stream(config, folder, world, state)) as stream, _stopping() as asked:

            def save(step: int) -> None:
                counts = {role: updates.count for role, updates in method.updates.items()}
                place = checkpoint.Place(**stream.state_dict())
                told = checkpoint.Told(step=step, base=prints, stream=place, updates=counts, **identity)
                checkpoint.save(checkpoints, told, tensors(method), world)
                if world.first:
                    checkpoint.prune(checkpoints, config.saves.keep)

            ended, saturation = time.perf_counter(), Saturation()
            for step, drawn in enumerate(islice(stream, config.steps - begun), begun + 1):
                # Made anew for each step; what a step draws it may need twice.
                at_hand = [examples(batch) for batch in drawn]
                waited = time.perf_counter() - ended
                signals = Signals()
                with _explained(f"step {step} ({drawn.bucket.task})", checkpoints):
                    method.step(step - 1, at_hand, signals)
                means = signals.means(world)
                took = time.perf_counter() - ended
                ended = time.perf_counter()
                if log is not None:
                    tokens = world.size * sum(len(one.clean) * one.bucket.tokens for one in at_hand)
                    times = {"time/step_s": took, "time/data_s": waited, "time/tokens_per_s": tokens / took}
                    log.write(step, means | times | {"task": drawn.bucket.task})
                    _say(step, config.steps, means, took)
                    saturation.look(step, means)
                stop = any(world.gathered(asked.is_set()))
                if stop or step == config.steps or step % config.saves.every == 0:
                    save(step)
                if stop and step < config.steps:
                    raise StoppedError(f"stopped on request at step {step}, which is kept: go on with --resume latest")
                if evaluation.due(step):
                    look(step)


@contextmanager
def owned(out: Path, resume: str | None) -> Iterator[None]:
    """The folder of a run, made if need be, for as long as it is this run's alone.

    Raises UsageError where it is no folder, or holds a run that is not to be gone on with; RunError where it is
    another's, or cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{out} cannot be the folder of a run: a file of that name is in the way") from error
    except OSError as error:
        raise RunError(f"{out} cannot be the folder of a run: {error.strerror}") from error
    with alone(Folder(str(out))):
        checkpoint.sound(out / "checkpoints")
        there = checkpoint.latest(out / "checkpoints")
        if resume is None and there is not None:
            raise UsageError(f"{out} holds a run already ({there.name}): --resume latest, or another folder")
        yield


def samples(out: Path, step: int) -> Path:
    """Where the samples after a step lie, a film."""
    return out / "samples" / f"step-{step:07d}.mp4"


def held_out(config: Run, examples: Examples, folder: Path) -> list[Example]:
    """The same held-out clips for every process, to be sampled again and again: as many of each task as there are of
    the others, none twice; none at all, if the mixture holds none out."""
    try:
        opened = Stream(config.data.mixture, rank=0, world=1, split=HELD_OUT, **_form(config, folder))
    except UsageError as error:
        _LOG.warning("nothing will be sampled: %s (`held_out` in its YAML)", error)
        return []
    found: list[Example] = []
    seen: dict[str, set[str]] = {bucket.task: set() for bucket in opened.order.buckets}
    each = math.ceil(config.evaluation.clips / len(seen))
    with closing(opened) as stream:
        # Rare tasks are waited for, but not without end: there may be fewer clips than are wanted.
        for step in islice(stream, 2 * stream.order.steps_per_epoch):
            known = seen[step.bucket.task]
            if sum(map(len, seen.values())) >= config.evaluation.clips:
                break
            for batch in step if len(known) < each else ():
                if len(known) < each and known.isdisjoint(batch.keys):
                    found.append(examples(batch))
                    known.update(batch.keys)
    return found


def _stream(config: Run, folder: Path, world: World, state: dict[str, Any] | None) -> Stream:
    return Stream(
        config.data.mixture,
        rank=world.rank,
        world=world.size,
        workers=config.data.workers,
        cache=config.data.cache,
        state=state,
        **_form(config, folder),
    )


def _form(config: Run, folder: Path) -> dict[str, Any]:
    """What is read of each clip, as arguments of a stream."""
    form, size = config.data.form, config.data.size
    model = model_folder.fingerprints(folder) if form == "latents" else None
    return {"form": form, "model": model, "frames": size and size.frames}


def _identity(config: Run) -> dict[str, Any]:
    """What a checkpoint is of; the schedule is said in timesteps, for others to read."""
    return {
        "config": config.model_dump(mode="json"),
        "kind": "distill" if isinstance(config, Distill) else "teach",
        "schedule": config.schedule.as_json() if isinstance(config, Distill) else None,
    }


def _base(config: Run, folder: Path) -> dict[str, str]:
    """What the network that is trained stands on, and is not in its checkpoints: fingerprints of parts of its model."""
    scratch = isinstance(config, Teach) and config.scratch
    parts = (model_folder.TRANSFORMER, model_folder.VAE, model_folder.TEXT_ENCODER)
    return model_folder.fingerprints(folder, parts[1:] if scratch else parts)


def _begin(
    config: Run, method: Method, checkpoints: Path, resume: str | None, prints: dict[str, str], folder: Path
) -> tuple[int, dict[str, Any] | None]:
    """The step that was done last, and the stream's state then."""
    found = None if resume is None else checkpoint.chosen(checkpoints, resume)
    if found is None:
        return 0, None
    told = checkpoint.read(found)
    if told.kind != (kind := _identity(config)["kind"]):
        raise UsageError(f"{found} is of `{told.kind}`, and this is `{kind}`: begin a new folder for that")
    if isinstance(config, Distill) and (was := schedule.parse(told.schedule, str(found))) != config.schedule:
        raise UsageError(f"{found} has {was}, and this run {config.schedule}: begin a new folder for that")
    same(config, told.config)
    checkpoint.fits(found, told, prints, folder)
    if {*told.updates} != {*method.updates}:
        raise UsageError(f"{found} contradicts itself: it has updates of {', '.join(told.updates) or 'nothing'}")
    checkpoint.load(found, tensors(method))
    for role, updates in method.updates.items():
        updates.count = told.updates[role]
    _LOG.info("going on from %s", found)
    return told.step, told.stream.model_dump()


@contextmanager
def _explained(what: str, checkpoints: Path, helps: str = "") -> Iterator[None]:
    """Turns what ends a step into a `RunError` that says what is kept and what may help."""
    try:
        yield
    except (FloatingPointError, torch.OutOfMemoryError) as error:
        last = checkpoint.latest(checkpoints)
        kept = f"{last} is whole" if last else "there is no checkpoint yet"
        if not helps and isinstance(error, torch.OutOfMemoryError):
            helps = "More GPUs, smaller clips, `model.lora_rank` or `activation_checkpointing` help: `vdot-train plan`"
        elif not helps:
            helps = "A lower rate or a smaller `clip` may help; see which signals grew in log.jsonl"
        raise RunError(f"{what}: {error}; {kept}. {helps}") from error


def _say(step: int, steps: int, means: dict[str, float], took: float) -> None:
    shown = "  ".join(f"{name} {value:.4g}" for name, value in means.items() if name.endswith(("loss", "std_ratio")))
    _LOG.info("step %d of %d  %s  %.2f s", step, steps, shown, took)


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that SIGTERM or Ctrl-C sets; a second Ctrl-C interrupts at once."""
    asked = threading.Event()

    def ask(number: int, _frame: object) -> None:
        # torchrun passes SIGTERM on, and a scheduler may have sent it to every process before.
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
