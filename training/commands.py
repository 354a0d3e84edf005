"""What the commands of `vdot-train` do, for Python too."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import diffusers.utils.logging
import numpy as np
import torch
import transformers.utils.logging

from pipeline.errors import RunError, UsageError
from pipeline.formats.clip_encode import encode_clip
from pipeline.storage.atomic import complete_file
from training import config
from training.config import Distill, Run, Teach
from training.diffusion import seeded_random
from training.distributed import World, out_of_memory, world
from training.encoding import vcu
from training.encoding.examples import Example, Examples
from training.encoding.video_files import FPS, Frames, read_picture, read_video
from training.export import export as exporting
from training.export import generate, trained_model
from training.models import assemble, loading
from training.models import folder as model_folder
from training.sampling import samplers
from training.sampling.samplers import Sampling
from training.trainer import memory_estimate
from training.trainer.distill import Distillation
from training.trainer.loop import Method, held_out, train
from training.trainer.metrics import Log
from training.trainer.resume import begin, owned
from training.trainer.teach import Teaching

_LOG = logging.getLogger("vdot_data")
# A line for each file that is loaded says nothing that a log needs.
diffusers.utils.logging.disable_progress_bar()
diffusers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
# Nor do tables of weights that are missing or unknown: `loading` says it in one sentence.
transformers.utils.logging.set_verbosity_error()


def teach(file: Path, out: Path, resume: str | None = None) -> None:
    """Train a VACE model by flow matching, as a configuration says. Raises as `loop.train`."""
    told = config.load(file, Teach)
    _run(told, out, resume, lambda folder, here, _: Teaching(told, assemble.teaching(told, folder, here)))


def distill(file: Path, out: Path, resume: str | None = None) -> None:
    """Distil a VACE model into a few steps, as a configuration says. Raises as `loop.train`."""
    told = config.load(file, Distill)

    def method(folder: Path, here: World, examples: Examples) -> Distillation:
        networks = assemble.distillation(told, folder, here)
        return Distillation(told, networks, examples.negative)

    _run(told, out, resume, method)


def planned(file: Path, teaching: bool, devices: int) -> memory_estimate.Plan:
    """What a run of a configuration needs of each device. Raises UsageError where model or mixture cannot be read."""
    told = config.load(file, Teach if teaching else Distill)
    return memory_estimate.of(told, _folder(told), devices)


def sample(
    trained: Path,
    out: Path,
    prompt: str,
    video: Path | None,
    mask: Path | None,
    references: Sequence[Path],
    shape: vcu.Shape,
    seed: int,
) -> None:
    """Write a video that a trained model makes. Raises UsageError for what cannot be read or does not fit, RunError
    where memory ends or nothing can be written."""
    if mask is not None and video is None:
        raise UsageError("a mask belongs to a video: --video")
    # What a terminal gives that is no UTF-8, Python keeps as halves of a character.
    if any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise UsageError("the prompt is no valid UTF-8")
    try:
        vcu.latent_shape(shape, 1)
    except ValueError as error:
        raise UsageError(str(error)) from error
    # A device would be replaced, not written to.
    if (out.exists() and not out.is_file()) or not out.parent.is_dir():
        raise UsageError(f"{out} cannot be written: name a file in a folder that is there")
    with _in_memory(f"the model for {shape[0]} frames of {shape[2]} x {shape[1]}"):
        condition = None if video is None else read_video(video, shape)
        hidden = None if mask is None else read_video(mask, shape).mean(axis=3) > 127
        shown = [read_picture(one) for one in references]
        found = trained_model.load(trained, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            frames = generate.video(
                found, prompt, shape=shape, condition=condition, mask=hidden, references=shown, seed=seed
            )
        except FloatingPointError as error:
            raise RunError(f"{trained} makes no video: {error}") from error
    _write(out, frames)
    _LOG.info("%s: %d frames of %d x %d", out, len(frames), *frames.shape[2:0:-1])


def export(trained: Path, out: Path, lora: bool = False) -> None:
    """Write a trained model for others. Raises as `export.export`."""
    exporting.export(trained_model.load(trained, torch.device("cpu")), out, lora=lora)
    _LOG.info("%s holds the model and its card, README.md", out)


def _run(told: Run, out: Path, resume: str | None, method: Callable[[Path, World, Examples], Method]) -> None:
    folder = _folder(told)
    with ExitStack() as held:
        here = held.enter_context(world())
        planned = memory_estimate.of(told, folder, here.size)
        if here.device.type == "cuda":
            planned.refuse(torch.cuda.get_device_properties(here.device).total_memory)
        if here.first:
            held.enter_context(owned(out, resume))
        begun = begin(told, folder, out, resume, here)
        held.enter_context(closing(begun.stream))
        with _in_memory("this run"):
            examples = Examples(folder, told.model, told.data, here.device)
            made = method(folder, here, examples)
            fixed = held_out(told, examples, begun.prints) if told.evaluation.every else []
        way = samplers.of(told)

        def evaluate(step: int, file: Path, log: Log | None) -> None:
            shown = [_shown(example, made, examples, way, told.seed) for example in fixed]
            if log is not None and shown:
                film = _grid(shown)
                _write(file, film)
                log.picture(step, "samples", film[len(film) // 2])

        train(told, made, examples, begun, out, here, evaluate=evaluate)


@contextmanager
def _in_memory(what: str) -> Iterator[None]:
    """Turns what is raised where memory ends into a `RunError`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise RunError(f"{what} does not fit into memory: {str(error).partition(chr(10))[0]}") from error


def _shown(example: Example, method: Method, examples: Examples, way: Sampling, seed: int) -> Frames:
    """The clips of an example above what is made from their conditions: uint8 [T, H, W, 3]."""
    references = example.bucket.references

    def noise(step: int) -> torch.Tensor:
        # The same at every evaluation, so that what changes is the model.
        return seeded_random.normal(
            example.clean.shape, example.clean.device, seed, "evaluation", example.position, step
        )

    made = way.make(method.student, example.conditions, examples.negative, noise)
    rows = [examples.decode(vcu.trim(one, references)) for one in (example.clean, made)]
    return np.concatenate([np.concatenate([*frames], axis=2) for frames in rows], axis=1)


def _grid(shown: list[Frames]) -> Frames:
    """Films of several shapes side by side, black where they end: uint8 [T, H, W, 3]."""
    length, height = (max(film.shape[side] for film in shown) for side in (0, 1))
    padded = [np.pad(film, ((0, length - len(film)), (0, height - film.shape[1]), (0, 0), (0, 0))) for film in shown]
    return np.concatenate(padded, axis=2)


def _write(file: Path, film: Frames) -> None:
    try:
        # Whole or not at all: a run that goes on makes what is not there.
        with complete_file(file, encode_clip(film, FPS)) as whole:
            whole.replace(file)
    except OSError as error:
        raise RunError(f"{file} cannot be written: {error}") from error


def _folder(told: Run) -> Path:
    """The folder of a run's model, whose parts fit together."""
    folder = model_folder.folder(told.model.folder, (model_folder.TRANSFORMER,))
    for transformer in (folder, assemble.student_folder(told.model, folder)):
        loading.together(transformer, folder)
    return folder
