"""The commands of `vdot-train` as Python functions."""

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
from pipeline.storage.atomic import write_file
from training import config
from training.config import Distill, Run, Teach
from training.diffusion import seeded_random
from training.distributed import World, is_out_of_memory, join_world
from training.encoding import vcu
from training.encoding.examples import Example, ExampleEncoder
from training.encoding.video_files import FPS, Frames, read_picture, read_video
from training.export import export as exporting
from training.export import generate, trained_model
from training.models import assemble, loading
from training.models import folder as model_folder
from training.sampling import samplers
from training.sampling.samplers import Sampler
from training.trainer import memory_estimate
from training.trainer.distill import Distillation
from training.trainer.loop import Method, pick_held_out, train
from training.trainer.metrics import Log
from training.trainer.resume import find_start, lock_folder
from training.trainer.teach import Teaching

_LOG = logging.getLogger("vdot_data")


def teach(file: Path, out: Path, resume: str | None = None) -> None:
    """Train a VACE model by flow matching, as configured in a file. Raises as `loop.train`."""
    settings = config.load(file, Teach)
    _run(
        settings,
        out,
        resume,
        lambda folder, world, _: Teaching(settings, assemble.build_teaching(settings, folder, world)),
    )


def distill(file: Path, out: Path, resume: str | None = None) -> None:
    """Distil a VACE model into a few steps, as configured in a file. Raises as `loop.train`."""
    settings = config.load(file, Distill)

    def build_method(folder: Path, world: World, example_encoder: ExampleEncoder) -> Distillation:
        networks = assemble.build_distillation(settings, folder, world)
        return Distillation(settings, networks, example_encoder.negative)

    _run(settings, out, resume, build_method)


def plan_memory(file: Path, teaching: bool, devices: int) -> memory_estimate.MemoryPlan:
    """Estimate the memory of a configured run. Raises UsageError if the model or mixture cannot be read."""
    silence_libraries()
    settings = config.load(file, Teach if teaching else Distill)
    return memory_estimate.estimate(settings, _resolve_model_folder(settings), devices)


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
    """Write a video made by a trained model. Raises UsageError for input that cannot be read or does not fit, RunError
    if memory runs out or the video cannot be written."""
    if mask is not None and video is None:
        raise UsageError("a mask belongs to a video: --video")
    # Python keeps bytes from the terminal that are not UTF-8 as lone surrogates.
    if any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise UsageError("the prompt is not valid UTF-8")
    try:
        vcu.latent_shape(shape, 1)
    except ValueError as error:
        raise UsageError(str(error)) from error
    # Writing replaces the target, which would destroy a device or pipe.
    if (out.exists() and not out.is_file()) or not out.parent.is_dir():
        raise UsageError(f"{out} cannot be written: name a file in an existing folder")
    silence_libraries()
    with _explain_memory_errors(f"the model for {shape[0]} frames of {shape[2]} x {shape[1]}"):
        condition = None if video is None else read_video(video, shape)
        masked = None if mask is None else read_video(mask, shape).mean(axis=3) > 127
        pictures = [read_picture(path) for path in references]
        model = trained_model.load(trained, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            frames = generate.video(
                model, prompt, shape=shape, condition=condition, mask=masked, references=pictures, seed=seed
            )
        except FloatingPointError as error:
            raise RunError(f"{trained} cannot make a video: {error}") from error
    _write_film(out, frames)
    _LOG.info("%s: %d frames of %d x %d", out, len(frames), *frames.shape[2:0:-1])


def export(trained: Path, out: Path, lora: bool = False) -> None:
    """Write a trained model for other tools. Raises as `export.export`."""
    silence_libraries()
    exporting.export(trained_model.load(trained, torch.device("cpu")), out, lora=lora)
    _LOG.info("%s holds the model and its card, README.md", out)


def _run(
    settings: Run, out: Path, resume: str | None, build_method: Callable[[Path, World, ExampleEncoder], Method]
) -> None:
    silence_libraries()
    folder = _resolve_model_folder(settings)
    with ExitStack() as stack:
        world = stack.enter_context(join_world())
        plan = memory_estimate.estimate(settings, folder, world.size)
        if world.device.type == "cuda":
            plan.check_fits(torch.cuda.get_device_properties(world.device).total_memory)
        if world.first:
            stack.enter_context(lock_folder(out, resume))
        start = find_start(settings, folder, out, resume, world)
        stack.enter_context(closing(start.stream))
        with _explain_memory_errors("this run"):
            example_encoder = ExampleEncoder(folder, settings.model, settings.data, world.device)
            method = build_method(folder, world, example_encoder)
            held_out_examples = (
                pick_held_out(settings, example_encoder, start.fingerprints) if settings.evaluation.every else []
            )
        sampler = samplers.for_run(settings)

        def evaluate(step: int, file: Path, log: Log | None) -> None:
            films = [
                _render_comparison(example, method, example_encoder, sampler, settings.seed)
                for example in held_out_examples
            ]
            if log is not None and films:
                film = _tile_films(films)
                _write_film(file, film)
                log.add_picture(step, "samples", film[len(film) // 2])

        train(settings, method, example_encoder, start, out, world, evaluate=evaluate)


def silence_libraries() -> None:
    """Keep what only clutters a log out of it, from here to the end of the process."""
    for library in (diffusers, transformers):
        # Progress bars for each loaded file.
        library.utils.logging.disable_progress_bar()
        # Tables of missing or unknown weights: `loading` reports them in one sentence.
        library.utils.logging.set_verbosity_error()


@contextmanager
def _explain_memory_errors(subject: str) -> Iterator[None]:
    """Turn an out-of-memory error into a `RunError`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(f"{subject} does not fit into memory: {str(error).partition(chr(10))[0]}") from error


def _render_comparison(
    example: Example, method: Method, example_encoder: ExampleEncoder, sampler: Sampler, seed: int
) -> Frames:
    """The clips of an example above the samples made from their conditions: uint8 [T, H, W, 3]."""
    references = example.bucket.references

    def noise(step: int) -> torch.Tensor:
        # The same noise at every evaluation, so that only the model changes.
        return seeded_random.normal(
            example.clean.shape, example.clean.device, seed, "evaluation", example.position, step
        )

    generated = sampler.sample(method.student, example.conditions, example_encoder.negative, noise)
    rows = [example_encoder.decode(vcu.trim(latents, references)) for latents in (example.clean, generated)]
    return np.concatenate([np.concatenate([*frames], axis=2) for frames in rows], axis=1)


def _tile_films(films: list[Frames]) -> Frames:
    """Films of several shapes side by side, padded with black: uint8 [T, H, W, 3]."""
    length, height = (max(film.shape[side] for film in films) for side in (0, 1))
    padded = [np.pad(film, ((0, length - len(film)), (0, height - film.shape[1]), (0, 0), (0, 0))) for film in films]
    return np.concatenate(padded, axis=2)


def _write_film(file: Path, film: Frames) -> None:
    try:
        # Atomic: a resumed run makes samples whose file is missing.
        write_file(file, encode_clip(film, FPS))
    except OSError as error:
        raise RunError(f"{file} cannot be written: {error}") from error


def _resolve_model_folder(settings: Run) -> Path:
    """The folder of a run's model, after checking that its parts fit together."""
    folder = model_folder.resolve_folder(settings.model.folder, (model_folder.TRANSFORMER,))
    for transformer in (folder, assemble.student_folder(settings.model, folder)):
        loading.check_pair(transformer, folder)
    return folder
