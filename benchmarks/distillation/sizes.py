"""The size of a study: everything that depends on the machine, and nothing that differs between arms."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Size:
    """`train` and `test` clips; a transformer of `heads` x 32 channels and `layers`, some with a VACE layer; training
    of the teacher; training of the arms: `updates` of the student, each after `critics` updates of the critic, `marks`
    measurements on the way; conditions and seeds of the samples for `diversity`; `others`: fewer steps of the teacher,
    as references."""

    train: int
    test: int
    heads: int
    layers: int
    vace: tuple[int, ...]
    teacher_steps: int
    teacher_batch: int
    teacher_lr: float
    updates: int
    critics: int
    batch: int
    student_lr: float
    critic_lr: float
    marks: int
    diversity: tuple[int, int]
    replicates: int = 400
    chunk: int = 48
    teacher_cfg: float = 2.0
    reference_steps: int = 100
    others: tuple[int, ...] = (4, 8, 25)


SIZES = {
    "cpu": Size(
        train=512,
        test=96,
        heads=2,
        layers=3,
        vace=(0, 2),
        teacher_steps=1500,
        teacher_batch=24,
        teacher_lr=2e-3,
        updates=48,
        critics=3,
        batch=8,
        student_lr=2e-4,
        critic_lr=4e-4,
        marks=6,
        diversity=(12, 8),
    ),
    # For one H100. Not run yet: its rates and times are guesses.
    "gpu": Size(
        train=4096,
        test=256,
        heads=12,
        layers=12,
        vace=(0, 2, 4, 6, 8, 10),
        teacher_steps=8000,
        teacher_batch=64,
        teacher_lr=3e-4,
        updates=400,
        critics=5,
        batch=32,
        student_lr=2e-5,
        critic_lr=1e-4,
        marks=8,
        diversity=(32, 8),
        chunk=128,
    ),
    # For tests: seconds, and no result.
    "tiny": Size(
        train=6,
        test=4,
        heads=1,
        layers=2,
        vace=(0,),
        teacher_steps=2,
        teacher_batch=2,
        teacher_lr=1e-3,
        updates=2,
        critics=2,
        batch=2,
        student_lr=1e-4,
        critic_lr=1e-4,
        marks=2,
        diversity=(2, 2),
        replicates=8,
        chunk=4,
        reference_steps=3,
        others=(2,),
    ),
}
