"""The study: a teacher, its references, and each arm with each seed; one file for each, so that it can be gone on with.

What lies in its folder is not done again. A folder belongs to one size and one set of clips.
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
from benchmarks.distillation.arms import ARMS, settings
from benchmarks.distillation.clips import crops
from benchmarks.distillation.codec import Codec
from benchmarks.distillation.corpus import Corpus, pixels
from benchmarks.distillation.judge import Judge
from benchmarks.distillation.scenes import Scene, scene
from benchmarks.distillation.single import write
from benchmarks.distillation.sizes import SIZES, Size
from benchmarks.distillation.teacher import Sampler, few, many, taught
from pipeline.errors import UsageError
from pipeline.mixture.mixture import read
from training.config import Distill
from training.diffusion.schedule import Schedule
from training.distributed import World
from training.models.assemble import Networks, judging
from training.models.networks import Denoiser
from training.trainer.distill import Distillation
from training.trainer.metrics import Signals

# Seeds of the teacher's own noise: apart from those of the arms.
_REFERENCE, _FLOOR = 1000, 2000
# The last part of an arm, whose signals are kept.
_LATE = 0.75


def measure(
    size: str, seeds: int, out: Path, arms: Iterable[str], mixture: str | None = None, updates: int | None = None
) -> dict[str, Any]:
    """Run what is missing in `out`, and report. `mixture`: whose real clips are half of all, beside synthetic ones.
    `updates`: of each student, instead of the size's own.

    Raises UsageError for a folder that is of another study.
    """
    told = SIZES[size] if updates is None else replace(SIZES[size], updates=updates)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    begun = time.perf_counter()
    _claim(out, {"size": size, **asdict(told), "clips": _named(mixture)})
    train, test, own, sources = _data(told, mixture, device)
    write(out / "codec.json", sources)
    teacher = taught(told, train, out, device, _say)
    sampler = Sampler(told, test)
    reference = _reference(told, sampler, teacher, test.empty, out)
    judge = Judge(told, test, train, own, reference["main"], reference["diverse"])
    for seed in range(seeds):
        for letter in arms:
            file = out / "arms" / f"{letter}-{seed}.json"
            if not file.is_file():
                write(file, _arm(letter, told, seed, train, sampler, judge, teacher))
                _say(f"arm {letter}, seed {seed}: done after {time.perf_counter() - begun:.0f} s")
    _references(told, sampler, judge, teacher, test, seeds, out)
    machine = {
        "device": torch.cuda.get_device_name(0) if device.type == "cuda" else f"CPU, {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    return report.write_report(out, machine)


def _data(size: Size, mixture: str | None, device: torch.device) -> tuple[Corpus, Corpus, Codec, dict[str, Any]]:
    """What is trained on, what is held out, and the codec that was fitted on the first."""
    said: dict[str, Any] = {"clips": _named(mixture)}
    train = [scene(seed) for seed in range(size.train)]
    test = [scene(seed) for seed in range(10**6, 10**6 + size.test)]
    if mixture is not None:
        real_train, real_test, counts = crops(mixture, size.train // 2, size.test // 2)
        train = _by_turns(train[len(real_train) :], real_train)
        test = _by_turns(test[len(real_test) :], real_test)
        said |= counts
    own = codec.fit(pixels(train))
    said |= {"psnr_train": round(own.psnr(pixels(train)), 2), "psnr_test": round(own.psnr(pixels(test)), 2)}
    return Corpus(train, own, device), Corpus(test, own, device), own, said


def _by_turns(some: list[Scene], others: list[Scene]) -> list[Scene]:
    """Two of some, two of the others, and on: as tasks take turns of one, each has as many of both."""
    numbered = [(number // 2, clip) for clips in (some, others) for number, clip in enumerate(clips)]
    return [clip for _, clip in sorted(numbered, key=itemgetter(0))]


def _named(mixture: str | None) -> str:
    """What a report says that clips are; a mixture is known by what it says, not by where it lies."""
    return "synthetic" if mixture is None else f"synthetic, and crops of the clips of mixture {read(mixture)[0].hash}"


def _reference(size: Size, sampler: Sampler, teacher: Denoiser, empty: Tensor, out: Path) -> dict[str, Tensor]:
    file = out / "reference.safetensors"
    if not file.is_file():
        make = many(teacher, empty, size.reference_steps, size.teacher_cfg)
        found = {"main": sampler.main(make, _REFERENCE), "diverse": sampler.diverse(make, _REFERENCE)}
        beside = file.with_name(f"{file.name}.{os.getpid()}")
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, beside)
        beside.replace(file)
        _say("teacher: reference is made")
    return dict(load_file(file))


def _references(
    size: Size, sampler: Sampler, judge: Judge, teacher: Denoiser, test: Corpus, seeds: int, out: Path
) -> None:
    """What no objective has part in: the teacher, with fewer steps and with other noise, and clips held out."""
    for seed in range(seeds):
        ways = {
            f"teacher, {steps} steps": many(teacher, test.empty, steps, size.teacher_cfg)
            for steps in (*size.others, size.reference_steps)
        }
        ways["teacher, not distilled, the students' 4 steps"] = few(teacher, Schedule())
        for number, (title, make) in enumerate(ways.items()):
            file = out / "references" / f"{number}-{seed}.json"
            if file.is_file():
                continue
            begun = time.process_time()
            main = sampler.main(make, _FLOOR + seed)
            seconds = time.process_time() - begun
            # The reference's own diversity is what others are divided by.
            diverse = None if title.endswith(f" {size.reference_steps} steps") else sampler.diverse(make, _FLOOR + seed)
            write(file, {"title": title, "seed": seed, "sample_s": seconds, **_told(judge(main, diverse))})
            _say(f"{title}, seed {seed}: {seconds:.0f} s")
    file = out / "references" / "held-out-0.json"
    if not file.is_file():
        write(file, {"title": "clips held out", "seed": 0, **_told(judge(test.clean.cpu(), None))})


def _arm(
    letter: str, size: Size, seed: int, train: Corpus, sampler: Sampler, judge: Judge, teacher: Denoiser
) -> dict[str, Any]:
    """One objective with one seed, from the teacher's weights on."""
    config = settings(ARMS[letter], size, seed)
    loop = _loop(ARMS[letter].loop, config, teacher, train)
    device = train.clean.device
    make = few(loop.student, config.schedule)
    times, marks, signals = [], [], Signals()
    # On a CPU others take their share of the time, but not of this process's.
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    at_marks = {round(size.updates * (mark + 1) / size.marks) for mark in range(size.marks)}
    for update in range(size.updates):
        begun = clock()
        for critic in range(size.critics):
            step = update * size.critics + critic
            loop.step(2 * step, [train.example(seed, step, size.batch)], signals)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - begun)
        if update < int(_LATE * size.updates):
            signals = Signals()
        if update + 1 in at_marks and update + 1 < size.updates:
            with loop.average.worn():
                told = judge(sampler.main(make, seed), None, bootstrap=False)
            marks.append({"update": update + 1, "metrics": {name: values[0] for name, values in told.items()}})
    with loop.average.worn():
        told = judge(sampler.main(make, seed), sampler.diverse(make, seed))
    marks.append({"update": size.updates, "metrics": {name: values[0] for name, values in told.items()}})
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
        **_told(told),
    }


def _loop(kind: type[Distillation], config: Distill, teacher: Denoiser, train: Corpus) -> Distillation:
    student, fake = (Denoiser(copy.deepcopy(teacher.transformer), torch.float32) for _ in range(2))
    judge = None
    if config.gan is not None:
        torch.manual_seed(config.seed)
        judge = judging(fake, config.gan).to(train.clean.device)
    return kind(config, Networks(student, fake, teacher, judge), train.empty)


def _told(found: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "metrics": {name: values[0] for name, values in found.items()},
        "replicates": {name: values[1:] for name, values in found.items()},
    }


def _claim(out: Path, told: dict[str, Any]) -> None:
    """Make the folder one of this study. Raises UsageError where it is one of another."""
    file, told = out / "study.json", json.loads(json.dumps(told))
    if not file.is_file():
        write(file, told)
        return
    known: dict[str, Any] = json.loads(file.read_text())
    other = sorted(name for name in {*known, *told} if known.get(name) != told.get(name))
    if other:
        raise UsageError(f"{out} holds a study of another {', '.join(other)}: name another folder")


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
