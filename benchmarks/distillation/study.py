"""Runs the study: a teacher, its references, and each arm with each seed.

Each result is a file of its own, and existing files are not computed again, so that a study can be resumed. A folder
belongs to one size and one set of clips.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.distillation import codec, report
from benchmarks.distillation.arms import ARMS, build_config
from benchmarks.distillation.clips import cut_crops
from benchmarks.distillation.codec import Codec
from benchmarks.distillation.corpus import Corpus, pixels
from benchmarks.distillation.evaluator import Evaluator
from benchmarks.distillation.json_files import write_json
from benchmarks.distillation.scenes import Scene, build_scene
from benchmarks.distillation.sizes import SIZES, Size
from benchmarks.distillation.teacher import (
    Sampler,
    build_few_step_generator,
    build_many_step_generator,
    load_teacher,
)
from pipeline.errors import UsageError
from pipeline.mixture.mixture import read
from pipeline.storage.atomic import new_file
from training.config import Distill
from training.diffusion.schedule import Schedule
from training.distributed import World
from training.models.assemble import Networks, make_discriminator
from training.models.networks import Denoiser
from training.trainer.distill import Distillation
from training.trainer.metrics import Signals

# Seeds of the teacher's own noise, different from those of the arms.
_REFERENCE, _FLOOR = 1000, 2000
# Signals are averaged over the updates after this share of an arm.
_LATE = 0.75


def measure(
    size_name: str, seeds: int, out: Path, arms: Iterable[str], mixture: str | None = None, updates: int | None = None
) -> dict[str, Any]:
    """Run what is missing in `out`, and write the report. `mixture`: half of all clips are crops of its clips, the
    other half is synthetic. `updates`: of each student, instead of the size's own.

    Raises UsageError for a folder of another study.
    """
    size = SIZES[size_name] if updates is None else replace(SIZES[size_name], updates=updates)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    started = time.perf_counter()
    _claim_folder(out, {"size": size_name, **asdict(size), "clips": _describe_clips(mixture)})
    train, test, fitted, sources = _build_corpora(size, mixture, device)
    write_json(out / "codec.json", sources)
    teacher = load_teacher(size, train, out, device, _log)
    sampler = Sampler(size, test)
    reference = _load_reference(size, sampler, teacher, test.empty, out)
    evaluator = Evaluator(size, test, train, fitted, reference["main"], reference["diverse"])
    for seed in range(seeds):
        for letter in arms:
            file = out / "arms" / f"{letter}-{seed}.json"
            if not file.is_file():
                write_json(file, _run_arm(letter, size, seed, train, sampler, evaluator, teacher))
                _log(f"arm {letter}, seed {seed}: done after {time.perf_counter() - started:.0f} s")
    _measure_references(size, sampler, evaluator, teacher, test, seeds, out)
    machine = {
        "device": torch.cuda.get_device_name(0) if device.type == "cuda" else f"CPU, {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    return report.write_report(out, machine)


def _build_corpora(
    size: Size, mixture: str | None, device: torch.device
) -> tuple[Corpus, Corpus, Codec, dict[str, Any]]:
    """The training clips, the held-out clips, the codec fitted on the training clips, and a description for the
    report."""
    description: dict[str, Any] = {"clips": _describe_clips(mixture)}
    train = [build_scene(seed) for seed in range(size.train)]
    test = [build_scene(seed) for seed in range(10**6, 10**6 + size.test)]
    if mixture is not None:
        real_train, real_test, counts = cut_crops(mixture, size.train // 2, size.test // 2)
        train = _interleave(train[len(real_train) :], real_train)
        test = _interleave(test[len(real_test) :], real_test)
        description |= counts
    fitted = codec.fit(pixels(train))
    description |= {
        "psnr_train": round(fitted.psnr(pixels(train)), 2),
        "psnr_test": round(fitted.psnr(pixels(test)), 2),
    }
    return Corpus(train, fitted, device), Corpus(test, fitted, device), fitted, description


def _interleave(first: list[Scene], second: list[Scene]) -> list[Scene]:
    """Two clips of the first list, two of the second, and so on: as tasks alternate, each gets as many of both."""
    numbered = [(number // 2, clip) for clips in (first, second) for number, clip in enumerate(clips)]
    return [clip for _, clip in sorted(numbered, key=itemgetter(0))]


def _describe_clips(mixture: str | None) -> str:
    """The clips as named in a report; a mixture is identified by its content, not by its location."""
    return "synthetic" if mixture is None else f"synthetic, and crops of the clips of mixture {read(mixture)[0].hash}"


def _load_reference(size: Size, sampler: Sampler, teacher: Denoiser, empty: Tensor, out: Path) -> dict[str, Tensor]:
    file = out / "reference.safetensors"
    if not file.is_file():
        generate = build_many_step_generator(teacher, empty, size.reference_steps, size.teacher_cfg)
        latents = {
            "main": sampler.sample_all(generate, _REFERENCE),
            "diverse": sampler.sample_diverse(generate, _REFERENCE),
        }
        with new_file(file) as unfinished:
            save_file({name: tensor.contiguous() for name, tensor in latents.items()}, unfinished)
        _log("teacher: reference is made")
    return dict(load_file(file))


def _measure_references(
    size: Size, sampler: Sampler, evaluator: Evaluator, teacher: Denoiser, test: Corpus, seeds: int, out: Path
) -> None:
    """Measure what no objective affects: the teacher with fewer steps and with other noise, and held-out clips."""
    for seed in range(seeds):
        generators = {
            f"teacher, {steps} steps": build_many_step_generator(teacher, test.empty, steps, size.teacher_cfg)
            for steps in (*size.others, size.reference_steps)
        }
        generators["teacher, not distilled, the students' 4 steps"] = build_few_step_generator(teacher, Schedule())
        for number, (title, generate) in enumerate(generators.items()):
            file = out / "references" / f"{number}-{seed}.json"
            if file.is_file():
                continue
            started = time.process_time()
            latents = sampler.sample_all(generate, _FLOOR + seed)
            seconds = time.process_time() - started
            # The diversity of all others is divided by the reference's own.
            is_reference = title.endswith(f" {size.reference_steps} steps")
            diverse = None if is_reference else sampler.sample_diverse(generate, _FLOOR + seed)
            scores = _split_replicates(evaluator(latents, diverse))
            write_json(file, {"title": title, "seed": seed, "sample_s": seconds, **scores})
            _log(f"{title}, seed {seed}: {seconds:.0f} s")
    file = out / "references" / "held-out-0.json"
    if not file.is_file():
        write_json(file, {"title": "clips held out", "seed": 0, **_split_replicates(evaluator(test.clean.cpu(), None))})


def _run_arm(
    letter: str, size: Size, seed: int, train: Corpus, sampler: Sampler, evaluator: Evaluator, teacher: Denoiser
) -> dict[str, Any]:
    """Train one objective with one seed, starting from the teacher's weights, and measure it."""
    config = build_config(ARMS[letter], size, seed)
    loop = _build_loop(ARMS[letter].loop, config, teacher, train)
    device = train.clean.device
    generate = build_few_step_generator(loop.student, config.schedule)
    times, marks, signals = [], [], Signals()
    # On a CPU, other processes affect wall time but not this process's CPU time.
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    at_marks = {round(size.updates * (mark + 1) / size.marks) for mark in range(size.marks)}
    for update in range(size.updates):
        started = clock()
        for critic in range(size.critics):
            step = update * size.critics + critic
            loop.step(2 * step, [train.example(seed, step, size.batch)], signals)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - started)
        if update < int(_LATE * size.updates):
            signals = Signals()
        if update + 1 in at_marks and update + 1 < size.updates:
            with loop.ema.swap_weights():
                scores = evaluator(sampler.sample_all(generate, seed), None, bootstrap=False)
            marks.append({"update": update + 1, "metrics": {name: values[0] for name, values in scores.items()}})
    with loop.ema.swap_weights():
        scores = evaluator(sampler.sample_all(generate, seed), sampler.sample_diverse(generate, seed))
    marks.append({"update": size.updates, "metrics": {name: values[0] for name, values in scores.items()}})
    means = {name: float(f"{value:.5g}") for name, value in signals.means(World(0, 1, device)).items()}
    return {
        "arm": letter,
        "title": ARMS[letter].title,
        "seed": seed,
        "settings": json.loads(config.model_dump_json(exclude={"model", "data", "saves", "evaluation"})),
        "clock": clock.__name__,
        "s_per_update": statistics.median(times),
        "s": round(sum(times), 2),
        "marks": marks,
        "signals": means,
        **_split_replicates(scores),
    }


def _build_loop(kind: type[Distillation], config: Distill, teacher: Denoiser, train: Corpus) -> Distillation:
    student, fake = (Denoiser(copy.deepcopy(teacher.transformer), torch.float32) for _ in range(2))
    discriminator = None
    if config.gan is not None:
        torch.manual_seed(config.seed)
        discriminator = make_discriminator(fake, config.gan).to(train.clean.device)
    return kind(config, Networks(student, fake, teacher, discriminator), train.empty)


def _split_replicates(scores: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "metrics": {name: values[0] for name, values in scores.items()},
        "replicates": {name: values[1:] for name, values in scores.items()},
    }


def _claim_folder(out: Path, identity: dict[str, Any]) -> None:
    """Mark the folder as one of this study. Raises UsageError if it belongs to another study."""
    file, identity = out / "study.json", json.loads(json.dumps(identity))
    if not file.is_file():
        write_json(file, identity)
        return
    stored: dict[str, Any] = json.loads(file.read_text())
    differing = sorted(name for name in {*stored, *identity} if stored.get(name) != identity.get(name))
    if differing:
        raise UsageError(f"{out} holds a study of another {', '.join(differing)}: name another folder")


def _log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
