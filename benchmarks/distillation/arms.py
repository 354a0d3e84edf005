"""The arms: settings of training.config.Distill that differ in the objective and in nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from benchmarks.distillation.control import PooledDistillation
from benchmarks.distillation.sizes import Size
from training.config import EMA, Data, DiscriminatorOptions, Distill, Model, Optimizer
from training.objectives.ot import TransportOptions
from training.trainer.distill import Distillation

# A run from files reads these two; here the study builds what they would name.
MODEL = Model(folder="made by the study", dtype="float32", activation_checkpointing=False, text_tokens=8)
DATA = Data(mixture="made by the study")
_SHARE_BEFORE_GAN = 0.2


@dataclass(frozen=True, slots=True)
class Arm:
    """An objective and its title in tables."""

    title: str
    objective: Literal["combined", "per_frame", "published"] = "combined"
    transport: TransportOptions | None = None
    gan: bool = False
    loop: type[Distillation] = Distillation


ARMS = {
    "A": Arm("DMD"),
    "B": Arm("DMD, one norm a frame (control)", objective="per_frame"),
    "C": Arm("DMD + transport", transport=TransportOptions()),
    "D": Arm("transport as published", objective="published"),
    "E": Arm("DMD + discriminator", gan=True),
    "F": Arm("DMD + transport + discriminator", transport=TransportOptions(), gan=True),
    "G": Arm("F, unbalanced", transport=TransportOptions(rho=1.0), gan=True),
    # The later search: C, with one setting changed.
    "H": Arm("C, weight 0.4", transport=TransportOptions(weight=0.4)),
    "I": Arm("C, weight 1", transport=TransportOptions(weight=1.0)),
    "J": Arm("C, epsilon 0.02", transport=TransportOptions(epsilon=0.02)),
    "K": Arm("C, epsilon 0.2", transport=TransportOptions(epsilon=0.2)),
    "L": Arm("C, position 1", transport=TransportOptions(position=1.0)),
    "M": Arm("C, not debiased", transport=TransportOptions(debias=False)),
}
SEARCH = "HIJKLM"
# Added after the long study, where D came out ahead: D with a plan that moves nothing.
ARMS["N"] = Arm("D, its plan the identity (control)", loop=PooledDistillation)


def build_config(arm: Arm, size: Size, seed: int) -> Distill:
    """The configuration of an arm. The caller numbers steps 0, 2, 4, ...: see the README."""
    # R1 and R2 have weight 0, as published: on a CPU they would take half of an arm's time.
    gan_start = int(_SHARE_BEFORE_GAN * size.updates)
    gan = DiscriminatorOptions(start=gan_start, lr=size.critic_lr, smoothness=0.0, width=64) if arm.gan else None
    return Distill(
        model=MODEL,
        data=DATA,
        steps=2 * size.critics * size.updates,
        seed=seed,
        average=EMA(decay=0.9, start=size.updates // 8),
        teacher_cfg=size.teacher_cfg,
        student=Optimizer(lr=size.student_lr),
        critic=Optimizer(lr=size.critic_lr),
        student_every=2 * size.critics,
        transport=arm.transport,
        gan=gan,
        objective=arm.objective,
    )
