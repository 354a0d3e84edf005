"""The training loop: from data to steps, logs, samples and checkpoints, with resume.

OUT/config.yaml  log.jsonl  tensorboard/  samples/  checkpoints/step-N/
"""

from __future__ import annotations

import logging
import math
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
from pipeline.stop import Stop, interrupt_again
from pipeline.storage.atomic import write_file
from training.config import Run
from training.data.stream import Stream
from training.distributed import World, is_out_of_memory
from training.encoding.examples import Example, ExampleEncoder
from training.models.networks import Denoiser
from training.trainer import checkpoint
from training.trainer.metrics import Log, SaturationMonitor, Signals
from training.trainer.optimizer import NamedAdamW, WeightEMA
from training.trainer.resume import StartPoint, stream_options

_LOG = logging.getLogger("vdot_data")
# How many passes over the held-out clips are made to find some of each task.
_MAX_EPOCHS = 20


class Method(Protocol):
    """What a step does: `teach.Teaching`, `distill.Distillation`."""

    student: Denoiser
    optimizers: dict[str, NamedAdamW]
    ema: WeightEMA

    def step(self, number: int, examples: Sequence[Example], signals: Signals) -> None:
        """One step; numbers start at 0."""


def collect_tensors(method: Method) -> dict[str, Tensor]:
    """All trained tensors of a method, by name, for a checkpoint."""
    tensors = method.ema.tensors("student")
    for role, optimizer in method.optimizers.items():
        tensors |= optimizer.tensors(role)
    return tensors


def train(
    config: Run,
    method: Method,
    example_encoder: ExampleEncoder,
    start: StartPoint,
    out: Path,
    world: World,
    *,
    evaluate: Callable[[int, Path, Log | None], None],
) -> None:
    """Train until `config.steps`, ending with a checkpoint. `out`: a folder locked by `lock_folder`. `evaluate`: called
    with the EMA weights in place, a step, the path of its samples, and the log of the first process.

    Raises RunError that names the last checkpoint if the run fails; UsageError for a checkpoint that does not fit;
    StoppedError after SIGTERM or Ctrl-C, once a checkpoint of the current step is written.
    """
    checkpoints, evaluation, stream = out / "checkpoints", config.evaluation, start.stream
    _restore(start, method)
    identity = start.identity(config)
    with _explain_errors(f"the log of {out}", checkpoints):
        # Before anything else is written, so that a full disk is reported here.
        if world.first and start.step < config.steps:
            write_file(out / "config.yaml", yaml.safe_dump(identity["config"], sort_keys=False).encode())
        log_context = closing(Log(out, start.step)) if world.first else nullcontext()
    with log_context as log:

        def evaluate_step(step: int) -> None:
            advice = "`evaluation: {every: 0}` continues without samples"
            with _explain_errors(f"sampling after step {step}", checkpoints, advice), method.ema.swap_weights():
                evaluate(step, samples_path(out, step), log)

        # The run may have ended between a checkpoint and its samples.
        samples_due = start.step and evaluation.is_due(start.step)
        if samples_due and not world.gather(samples_path(out, start.step).is_file())[0]:
            evaluate_step(start.step)
        if start.step >= config.steps:
            _LOG.info("nothing is left to do: step %d of %d is done", start.step, config.steps)
            return
        with Stop(interrupt_again) as stop_request:

            def save(step: int) -> None:
                counts = {role: optimizer.count for role, optimizer in method.optimizers.items()}
                stream_state = checkpoint.StreamState(**stream.state_dict())
                metadata = checkpoint.Metadata(step=step, stream=stream_state, updates=counts, **identity)
                checkpoint.save(checkpoints, metadata, collect_tensors(method), world)
                if world.first:
                    checkpoint.prune(checkpoints, config.saves.keep)

            last_end, saturation = time.perf_counter(), SaturationMonitor()
            for step, stream_step in enumerate(islice(stream, config.steps - start.step), start.step + 1):
                signals = Signals()
                with _explain_errors(f"step {step} ({stream_step.bucket.task})", checkpoints):
                    # A list, because a step may go over its examples twice.
                    examples = [example_encoder(batch) for batch in stream_step]
                    waiting = time.perf_counter() - last_end
                    method.step(step - 1, examples, signals)
                means = signals.means(world)
                duration = time.perf_counter() - last_end
                last_end = time.perf_counter()
                if log is not None:
                    tokens = world.size * sum(len(example.clean) * example.bucket.tokens for example in examples)
                    times = {"time/step_s": duration, "time/data_s": waiting, "time/tokens_per_s": tokens / duration}
                    with _explain_errors(f"the log of step {step}", checkpoints):
                        log.write(step, means | times | {"task": stream_step.bucket.task})
                    _log_step(step, config.steps, means, duration)
                    saturation.observe(step, means)
                stop = any(world.gather(stop_request.requested))
                if stop or step == config.steps or step % config.saves.every == 0:
                    save(step)
                if stop and step < config.steps:
                    raise StoppedError(f"stopped on request at step {step}, which is saved: --resume latest continues")
                if evaluation.is_due(step):
                    evaluate_step(step)


def samples_path(out: Path, step: int) -> Path:
    """The path of the samples after a step, one video."""
    return out / "samples" / f"step-{step:07d}.mp4"


def pick_held_out(config: Run, example_encoder: ExampleEncoder, fingerprints: Mapping[str, str]) -> list[Example]:
    """The held-out clips to sample at every evaluation, the same in every process: equally many of each task, no clip
    twice; none if the mixture holds none out."""
    try:
        stream = Stream(config.data.mixture, rank=0, world=1, split=HELD_OUT, **stream_options(config, fingerprints))
    except UsageError as error:
        _LOG.warning("nothing will be sampled: %s (`held_out` in its YAML)", error)
        return []
    order, clips = stream.order, config.evaluation.clips
    rows: dict[str, set[int]] = {}
    for bucket in order.buckets:
        rows.setdefault(bucket.task, set()).update(order.rows(bucket).tolist())
    targets = {task: min(len(task_rows), math.ceil(clips / len(rows))) for task, task_rows in rows.items()}
    keys_by_task: dict[str, set[str]] = {task: set() for task in rows}
    held_out: list[Example] = []
    with closing(stream):
        # Wait for rare tasks, but not forever: damaged clips never come.
        for step in islice(stream, _MAX_EPOCHS * (order.steps_per_epoch + len(order.buckets))):
            task_keys, target = keys_by_task[step.bucket.task], targets[step.bucket.task]
            if sum(map(len, keys_by_task.values())) >= min(clips, sum(targets.values())):
                break
            for batch in step if len(task_keys) < target else ():
                if len(task_keys) < target and task_keys.isdisjoint(batch.keys):
                    held_out.append(example_encoder(batch))
                    task_keys.update(batch.keys)
    return held_out


def _restore(start: StartPoint, method: Method) -> None:
    """Load a checkpoint's state into a method, if there is one."""
    if start.path is None or start.metadata is None:
        return
    stored, expected = ({*roles} for roles in (start.metadata.updates, method.optimizers))
    if stored != expected:
        stored_roles, expected_roles = (", ".join(sorted(roles)) or "nothing" for roles in (stored, expected))
        raise UsageError(
            f"{start.path} does not fit: it holds updates of {stored_roles}, and this run makes {expected_roles}"
        )
    checkpoint.load(start.path, collect_tensors(method))
    for role, optimizer in method.optimizers.items():
        optimizer.count = start.metadata.updates[role]
    _LOG.info("resuming from %s", start.path)


@contextmanager
def _explain_errors(activity: str, checkpoints: Path, advice: str = "") -> Iterator[None]:
    """Turn what ends a step into a `RunError` that names the last checkpoint and what may help."""
    try:
        yield
    except (FloatingPointError, RuntimeError, MemoryError, OSError) as error:
        out_of_memory = is_out_of_memory(error)
        if isinstance(error, RuntimeError) and not out_of_memory:
            raise
        last = checkpoint.latest(checkpoints)
        state = f"{last} is complete" if last else "there is no checkpoint yet"
        if not advice and out_of_memory:
            advice = "`activation_checkpointing: true` may help, and more GPUs do: `vdot-train plan`"
        elif not advice and isinstance(error, FloatingPointError):
            remedy = f"--resume {last} with another folder for --out" if last else "start a new run"
            advice = f"A lower rate or a smaller `clip` may help: {remedy}; log.jsonl shows which signals grew"
        elif not advice:
            advice = "Once that is fixed, continue with --resume latest"
        raise RunError(f"{activity}: {str(error).partition(chr(10))[0]}; {state}. {advice}") from error


def _log_step(step: int, steps: int, means: dict[str, float], duration: float) -> None:
    text = "  ".join(f"{name} {value:.4g}" for name, value in means.items() if name.endswith(("loss", "std_ratio")))
    _LOG.info("step %d of %d  %s  %.2f s", step, steps, text, duration)
