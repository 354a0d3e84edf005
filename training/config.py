"""What a training run does, as YAML that people write: read strictly, stored with each checkpoint, compared on resume.

Ready ones lie in `training/configs/`; each says what it needs and whether it was ever run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from pipeline.errors import UsageError
from pipeline.formats.strict_yaml import StrictModel, parse_mapping, read_text, validate
from training.diffusion.schedule import Levels, Schedule
from training.objectives.ot import Transport

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1, le=10**12)]


class Size(StrictModel):
    """What clips are brought to: the first `frames` of them, scaled and cropped. Only for data of the form pixels."""

    frames: Count
    height: Annotated[int, Field(ge=16, multiple_of=16)]
    width: Annotated[int, Field(ge=16, multiple_of=16)]

    @model_validator(mode="after")
    def _grouped(self) -> Size:
        if self.frames % 4 != 1:
            raise ValueError(f"a clip has 4n + 1 frames, not {self.frames}")
        return self


class Model(StrictModel):
    """Whose weights. `folder`: the VACE model in diffusers' layout, or a hub id: the teacher, and what the student
    begins as, unless `student` names another. `lora_rank`: adapters on one frozen network instead of full
    fine-tuning. `text_tokens`: longer captions are cut; of stored latents, which have up to 512, their embeddings
    are."""

    folder: str
    student: str | None = None
    lora_rank: Annotated[int, Field(ge=1, le=1024)] | None = None
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    activation_checkpointing: bool = True
    text_tokens: Annotated[int, Field(ge=1, le=512)] = 512
    negative_prompt: str = ""

    @field_validator("negative_prompt")
    @classmethod
    def _letters(cls, prompt: str) -> str:
        # YAML can spell halves of a letter, which no tokenizer takes.
        prompt.encode()
        return prompt


class Data(StrictModel):
    """What it is trained on: a folder that `vdot-data mix` made, as latents of the model or as pixels."""

    mixture: str
    form: Literal["latents", "pixels"] = "latents"
    size: Size | None = None
    workers: Annotated[int, Field(ge=0, le=128)] = 2
    cache: str | None = None

    @model_validator(mode="after")
    def _sizes(self) -> Data:
        if self.size is not None and self.form != "pixels":
            raise ValueError("latents have the size that they were stored in: `size` needs `form: pixels`")
        return self


class Optimizer(StrictModel):
    """AdamW; `clip`: the largest norm of all gradients together; `warmup`: updates until the rate is whole."""

    lr: Annotated[float, Field(gt=0, le=1)]
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.0, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip: Positive = 10.0
    warmup: Annotated[int, Field(ge=0)] = 0


class Average(StrictModel):
    """The moving average of the trained weights, which is what is evaluated, sampled and exported: it begins as they
    are after `start` updates."""

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    start: Annotated[int, Field(ge=0)] = 200


class Saves(StrictModel):
    """When a checkpoint is written, in steps, and how many are kept; the newest is never removed."""

    every: Count = 200
    keep: Count = 3


class Evaluation(StrictModel):
    """Samples of the same held-out clips every so many steps; 0: never."""

    every: Annotated[int, Field(ge=0)] = 200
    clips: Count = 4

    def due(self, step: int) -> bool:
        """Whether there are samples after this step."""
        return self.every > 0 and step % self.every == 0


class Run(StrictModel):
    """What teaching and distilling share. `steps`: those of the stream, each one update or a set of them."""

    model: Model
    data: Data
    steps: Count
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    average: Average = Average()
    saves: Saves = Saves()
    evaluation: Evaluation = Evaluation()


class Teach(Run):
    """Flow matching: a VACE model, with `scratch` from random weights in the shape of the folder's. `shift` moves the
    noise levels that it learns at, and those of its samples, of `sample_steps` steps, guided by `teacher_cfg`."""

    scratch: bool = False
    optimizer: Optimizer
    shift: Positive = 5.0
    teacher_cfg: Annotated[float, Field(ge=1)] = 4.0
    sample_steps: Count = 25

    @model_validator(mode="after")
    def _whole(self) -> Teach:
        if self.model.lora_rank is not None or self.model.student is not None:
            raise ValueError("teaching trains all weights of `model.folder`: it knows no `lora_rank` and no `student`")
        return self


class Adversary(StrictModel):
    """The adversarial loss. `ratio`: the norm of its gradient at the student's sample, of the other gradient's.
    `start`: after so many updates of the student; before, the discriminator learns alone. `lr`: of the discriminator,
    which begins at random and has to learn faster than what is fine-tuned. `critic_weight`: of its loss beside the fake
    score's. `smoothness`: the weight of approximate R1 and R2, at `noise`. [the same size as FastGen's at VACE's 32,760
    tokens: 100 to 1000 x 0.1^2 / 32,760]"""

    ratio: Positive = 0.1
    start: Annotated[int, Field(ge=0)] = 200
    lr: Annotated[float, Field(gt=0, le=1)] = 2e-5
    critic_weight: Positive = 0.01
    smoothness: Annotated[float, Field(ge=0)] = 1e-4
    noise: Positive = 0.05
    width: Annotated[int, Field(ge=8, le=16384, multiple_of=8)] = 512


class Distill(Run):
    """VDOT's loop: fake score each step, student each `student_every`th. `transport` and `gan` may be null.

    `objective`: "combined", one gradient in which weights mean the same at every resolution; "per_frame", that gradient
    with each frame's norm set to what DMD's has on average (the control for VDOT's hidden normalisation);
    "published", the released trainer's parity of steps and its reductions, for comparison.
    """

    schedule: Schedule = Schedule()
    levels: Levels = Levels()
    teacher_cfg: Annotated[float, Field(ge=1)] = 4.0
    student: Optimizer
    critic: Optimizer
    student_every: Count = 5
    transport: Transport | None = Transport()
    gan: Adversary | None = Adversary()
    objective: Literal["combined", "per_frame", "published"] = "combined"

    @model_validator(mode="after")
    def _agreeing(self) -> Distill:
        if self.model.lora_rank is not None and self.model.student is not None:
            raise ValueError("adapters lie on the network in `model.folder`: no other `student` with `lora_rank`")
        if self.objective == "published" and self.gan is not None:
            if self.student_every % 2 == 0:
                raise ValueError("the published steps take turns: with an even `student_every` one of them never comes")
            if self.gan.smoothness:
                raise ValueError("the published discriminator has no R1 and R2: `gan: {smoothness: 0}`")
        return self


Kind = TypeVar("Kind", bound=Run)
# What may change when a run goes on: where things lie, and what trains no other way. Mixtures and models are known by
# what they hold.
_FREE = (
    "steps", "saves", "evaluation", "data.mixture", "data.workers", "data.cache", "model.folder", "model.student",
    "model.activation_checkpointing",
)  # fmt: skip


def load(path: Path, kind: type[Kind]) -> Kind:
    """The configuration in a file. Raises UsageError where it cannot be read, is not valid, or is one of the other
    kind."""
    given = parse_mapping(read_text(path, "configuration"), str(path))
    # What only one of them knows, and has to say.
    marks = {"teach": "optimizer", "distill": "critic"}
    own = kind.__name__.lower()
    for other, mark in marks.items():
        if other != own and mark in given and marks[own] not in given:
            hint = "plan --teach" if other == "teach" else "plan"
            raise UsageError(f"{path} is a configuration of `{other}` (and of `{hint}`), not of `{own}`")
    return validate(kind, given, str(path))


def parsed(kind: str, stored: dict[str, Any], name: str) -> Run:
    """The configuration that a checkpoint holds. Raises UsageError that names it where it is of another version."""
    if kind == "distill":
        return validate(Distill, stored, name)
    return validate(Teach, stored, name)


def changes(now: Run, stored: Mapping[str, Any]) -> str:
    """In what a run that goes on from a stored configuration would become another one; empty: in nothing."""
    was, wanted = _flat(stored), _flat(now.model_dump(mode="json"))
    return "; ".join(
        f"{name}: {was.get(name)!r}, now {wanted.get(name)!r}"
        for name in sorted({*was, *wanted})
        if was.get(name) != wanted.get(name) and not name.startswith(_FREE)
    )


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return found
