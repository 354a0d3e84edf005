"""A training run from its first step to its last: data in, steps, logs, samples and checkpoints out, and on again.

OUT/config.yaml  log.jsonl  tensorboard/  samples/  checkpoints/step-N/
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Protocol

import yaml
from torch import Tensor

from pipeline.errors import RunError, StoppedError, UsageError
from pipeline.mixture.mixture import HELD_OUT
from training.config import Run
from training.data.stream import Stream
from training.distributed import World, out_of_memory
from training.encoding.examples import Example, Examples
from training.models.networks import Denoiser
from training.trainer import checkpoint
from training.trainer.metrics import Log, Saturation, Signals
from training.trainer.optimizer import MovingAverage, Updates
from training.trainer.resume import Begun, form

_LOG = logging.getLogger("vdot_data")
# How many times over held-out clips are gone through to find some of each task.
_LOOKS = 20


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
    begun: Begun,
    out: Path,
    world: World,
    *,
    evaluate: Callable[[int, Path, Log | None], None],
) -> None:
    """Train until `config.steps` and keep the last checkpoint. `out`: a folder that is `owned`. `evaluate`: called, the
    average in place, with a step, where its samples go, and the log of the first process.

    Raises RunError where it cannot go on, and names the last checkpoint; UsageError for a checkpoint that does not fit;
    StoppedError after SIGTERM or Ctrl-C, with a checkpoint of where it stood.
    """
    checkpoints, evaluation, stream = out / "checkpoints", config.evaluation, begun.stream
    _take_up(begun, method)
    identity = begun.identity(config)
    with _explained(f"the log of {out}", checkpoints):
        # Before anything that would write beside this process: a full disk is met here.
        if world.first and begun.step < config.steps:
            (out / "config.yaml").write_text(yaml.safe_dump(identity["config"], sort_keys=False))
        opened = closing(Log(out, begun.step)) if world.first else nullcontext()
    with opened as log:

        def look(step: int) -> None:
            helps = "`evaluation: {every: 0}` goes on without samples"
            with _explained(f"sampling after step {step}", checkpoints, helps), method.average.worn():
                evaluate(step, samples(out, step), log)

        # It may have ended between a checkpoint and its samples.
        due = begun.step and evaluation.due(begun.step)
        if due and not world.gathered(samples(out, begun.step).is_file())[0]:
            look(begun.step)
        if begun.step >= config.steps:
            _LOG.info("nothing is left to do: step %d of %d is done", begun.step, config.steps)
            return
        with _stopping() as asked:

            def save(step: int) -> None:
                counts = {role: updates.count for role, updates in method.updates.items()}
                place = checkpoint.Place(**stream.state_dict())
                told = checkpoint.Told(step=step, stream=place, updates=counts, **identity)
                checkpoint.save(checkpoints, told, tensors(method), world)
                if world.first:
                    checkpoint.prune(checkpoints, config.saves.keep)

            ended, saturation = time.perf_counter(), Saturation()
            for step, drawn in enumerate(islice(stream, config.steps - begun.step), begun.step + 1):
                signals = Signals()
                with _explained(f"step {step} ({drawn.bucket.task})", checkpoints):
                    # Made anew for each step; what a step draws it may need twice.
                    at_hand = [examples(batch) for batch in drawn]
                    waited = time.perf_counter() - ended
                    method.step(step - 1, at_hand, signals)
                means = signals.means(world)
                took = time.perf_counter() - ended
                ended = time.perf_counter()
                if log is not None:
                    tokens = world.size * sum(len(one.clean) * one.bucket.tokens for one in at_hand)
                    times = {"time/step_s": took, "time/data_s": waited, "time/tokens_per_s": tokens / took}
                    with _explained(f"the log of step {step}", checkpoints):
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


def samples(out: Path, step: int) -> Path:
    """Where the samples after a step lie, a film."""
    return out / "samples" / f"step-{step:07d}.mp4"


def held_out(config: Run, examples: Examples, prints: Mapping[str, str]) -> list[Example]:
    """The same held-out clips for every process, to be sampled again and again: as many of each task as there are of
    the others, none twice; none at all, if the mixture holds none out."""
    try:
        opened = Stream(config.data.mixture, rank=0, world=1, split=HELD_OUT, **form(config, prints))
    except UsageError as error:
        _LOG.warning("nothing will be sampled: %s (`held_out` in its YAML)", error)
        return []
    order, clips = opened.order, config.evaluation.clips
    rows: dict[str, set[int]] = {}
    for bucket in order.buckets:
        rows.setdefault(bucket.task, set()).update(order.rows(bucket).tolist())
    wanted = {task: min(len(own), math.ceil(clips / len(rows))) for task, own in rows.items()}
    seen: dict[str, set[str]] = {task: set() for task in rows}
    found: list[Example] = []
    with closing(opened) as stream:
        # Rare tasks are waited for, but not without end: clips that are damaged never come.
        for step in islice(stream, _LOOKS * (order.steps_per_epoch + len(order.buckets))):
            known, enough = seen[step.bucket.task], wanted[step.bucket.task]
            if sum(map(len, seen.values())) >= min(clips, sum(wanted.values())):
                break
            for batch in step if len(known) < enough else ():
                if len(known) < enough and known.isdisjoint(batch.keys):
                    found.append(examples(batch))
                    known.update(batch.keys)
    return found


def _take_up(begun: Begun, method: Method) -> None:
    """Bring a method to where a checkpoint was."""
    if begun.at is None or begun.told is None:
        return
    held, made = ({*one} for one in (begun.told.updates, method.updates))
    if held != made:
        told, wanted = (", ".join(sorted(one)) or "nothing" for one in (held, made))
        raise UsageError(f"{begun.at} does not fit: it holds updates of {told}, and this run makes {wanted}")
    checkpoint.load(begun.at, tensors(method))
    for role, updates in method.updates.items():
        updates.count = begun.told.updates[role]
    _LOG.info("going on from %s", begun.at)


@contextmanager
def _explained(what: str, checkpoints: Path, helps: str = "") -> Iterator[None]:
    """Turns what ends a step into a `RunError` that says what is kept and what may help."""
    try:
        yield
    except (FloatingPointError, RuntimeError, MemoryError, OSError) as error:
        memory = out_of_memory(error)
        if isinstance(error, RuntimeError) and not memory:
            raise
        last = checkpoint.latest(checkpoints)
        kept = f"{last} is whole" if last else "there is no checkpoint yet"
        if not helps and memory:
            helps = "`activation_checkpointing: true` may help, and more GPUs do: `vdot-train plan`"
        elif not helps and isinstance(error, FloatingPointError):
            begins = f"--resume {last} with another folder for --out takes" if last else "a new run takes"
            helps = f"A lower rate or a smaller `clip` may help, which {begins}; see which signals grew in log.jsonl"
        elif not helps:
            helps = "Once that is mended, --resume latest goes on"
        raise RunError(f"{what}: {str(error).partition(chr(10))[0]}; {kept}. {helps}") from error


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
