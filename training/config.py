"""The configuration of a training run: YAML, read strictly, stored with each checkpoint and compared on resume.

Ready-made ones are in `training/configs/`; each states what it needs and whether it was ever run.
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
    """The size of clips in training: their first `frames`, scaled and cropped. Only for data of the form pixels."""

    frames: Count
    height: Annotated[int, Field(ge=16, multiple_of=16)]
    width: Annotated[int, Field(ge=16, multiple_of=16)]

    @model_validator(mode="after")
    def _check_frames(self) -> Size:
        if self.frames % 4 != 1:
            raise ValueError(f"a clip has 4n + 1 frames, not {self.frames}")
        return self


class Model(StrictModel):
    """The base model. `folder`: a VACE model in diffusers' layout, or a hub id: the teacher, and the student's initial
    weights unless `student` names another model. `lora_rank`: adapters on one frozen network instead of full
    fine-tuning. `text_tokens`: longer captions are truncated; with stored latents, which have up to 512 tokens, their
    embeddings are."""

    folder: str
    student: str | None = None
    lora_rank: Annotated[int, Field(ge=1, le=1024)] | None = None
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    activation_checkpointing: bool = True
    text_tokens: Annotated[int, Field(ge=1, le=512)] = 512
    negative_prompt: str = ""

    @field_validator("negative_prompt")
    @classmethod
    def _check_encodable(cls, prompt: str) -> str:
        # YAML can spell lone surrogates, which no tokenizer accepts.
        prompt.encode()
        return prompt


class Data(StrictModel):
    """The training data: a mixture made by `vdot-data mix`, as latents of the model or as pixels."""

    mixture: str
    form: Literal["latents", "pixels"] = "latents"
    size: Size | None = None
    workers: Annotated[int, Field(ge=0, le=128)] = 2
    cache: str | None = None

    @model_validator(mode="after")
    def _check_size(self) -> Data:
        if self.size is not None and self.form != "pixels":
            raise ValueError("latents have the size that they were stored in: `size` needs `form: pixels`")
        return self


class Optimizer(StrictModel):
    """AdamW. `clip`: the largest norm of all gradients together; `warmup`: updates until the full rate is reached."""

    lr: Annotated[float, Field(gt=0, le=1)]
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.0, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip: Positive = 10.0
    warmup: Annotated[int, Field(ge=0)] = 0


class EMA(StrictModel):
    """The exponential moving average of the trained weights, which is evaluated, sampled and exported. It starts as a
    copy of the weights after `start` updates."""

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    start: Annotated[int, Field(ge=0)] = 200


class Saves(StrictModel):
    """Checkpoints: written `every` so many steps, and how many to `keep`; the newest is never removed."""

    every: Count = 200
    keep: Count = 3


class Evaluation(StrictModel):
    """Samples of the same held-out clips, `every` so many steps; 0: never."""

    every: Annotated[int, Field(ge=0)] = 200
    clips: Count = 4

    def is_due(self, step: int) -> bool:
        """Whether samples are made after this step."""
        return self.every > 0 and step % self.every == 0


class Run(StrictModel):
    """Settings shared by teaching and distilling. `steps`: of the stream; each makes one update or several."""

    model: Model
    data: Data
    steps: Count
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    average: EMA = EMA()
    saves: Saves = Saves()
    evaluation: Evaluation = Evaluation()


class Teach(Run):
    """Flow matching of a VACE model; with `scratch`, from random weights in the shape of the folder's. `shift` applies
    to the noise levels of training and of sampling, which takes `sample_steps` steps with guidance `teacher_cfg`."""

    scratch: bool = False
    optimizer: Optimizer
    shift: Positive = 5.0
    teacher_cfg: Annotated[float, Field(ge=1)] = 4.0
    sample_steps: Count = 25

    @model_validator(mode="after")
    def _check_networks(self) -> Teach:
        if self.model.lora_rank is not None or self.model.student is not None:
            raise ValueError("teaching trains all weights of `model.folder`: it takes no `lora_rank` and no `student`")
        return self


class Adversary(StrictModel):
    """The adversarial loss. `ratio`: the norm of its gradient at the student's sample over that of the other gradient.
    `start`: the student's updates before it applies; until then only the discriminator learns. `lr`: of the
    discriminator, which starts from random weights and must learn faster than fine-tuned networks. `critic_weight`: of
    its loss relative to the fake score's. `smoothness`: the weight of approximate R1 and R2, at `noise`. [the same size
    as FastGen's at VACE's 32,760 tokens: 100 to 1000 x 0.1^2 / 32,760]"""

    ratio: Positive = 0.1
    start: Annotated[int, Field(ge=0)] = 200
    lr: Annotated[float, Field(gt=0, le=1)] = 2e-5
    critic_weight: Positive = 0.01
    smoothness: Annotated[float, Field(ge=0)] = 1e-4
    noise: Positive = 0.05
    width: Annotated[int, Field(ge=8, le=16384, multiple_of=8)] = 512


class Distill(Run):
    """VDOT's loop: the fake score is updated each step, the student each `student_every`th. `transport` and `gan` may
    be null.

    `objective`: "combined", one gradient in which weights mean the same at every resolution; "per_frame", that gradient
    with all frames at one norm (the control for VDOT's hidden normalisation); "published", the released trainer's
    alternating steps and its reductions, for comparison.
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
    def _check_agreement(self) -> Distill:
        if self.model.lora_rank is not None and self.model.student is not None:
            raise ValueError("adapters lie on the network in `model.folder`: no other `student` with `lora_rank`")
        if self.objective == "published" and self.gan is not None:
            if self.student_every % 2 == 0:
                raise ValueError("the published steps alternate: with an even `student_every` one of them never runs")
            if self.gan.smoothness:
                raise ValueError("the published discriminator has no R1 and R2: `gan: {smoothness: 0}`")
        return self


Kind = TypeVar("Kind", bound=Run)
# What may change when a run resumes: locations, and settings that do not affect training. Mixtures and models are
# identified by their content.
_CHANGEABLE = (
    "steps", "saves", "evaluation", "data.mixture", "data.workers", "data.cache", "model.folder", "model.student",
    "model.activation_checkpointing",
)  # fmt: skip


def load(path: Path, kind: type[Kind]) -> Kind:
    """The configuration in a file. Raises UsageError if it cannot be read, is invalid, or is of the other kind."""
    values = parse_mapping(read_text(path, "configuration"), str(path))
    # Required keys that only one kind has.
    marks = {"teach": "optimizer", "distill": "critic"}
    expected = kind.__name__.lower()
    for candidate, mark in marks.items():
        if candidate != expected and mark in values and marks[expected] not in values:
            hint = "plan --teach" if candidate == "teach" else "plan"
            raise UsageError(f"{path} is a configuration of `{candidate}` (and of `{hint}`), not of `{expected}`")
    return validate(kind, values, str(path))


def parse_stored(kind: str, stored: dict[str, Any], name: str) -> Run:
    """The configuration in a checkpoint. Raises UsageError that starts with `name` if it is of another version."""
    if kind == "distill":
        return validate(Distill, stored, name)
    return validate(Teach, stored, name)


def describe_changes(run: Run, stored: Mapping[str, Any]) -> str:
    """The settings in which a run that resumes from a stored configuration differs from it; "" if in none."""
    before, after = _flatten(stored), _flatten(run.model_dump(mode="json"))
    return "; ".join(
        f"{name}: {before.get(name)!r}, now {after.get(name)!r}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name) and not name.startswith(_CHANGEABLE)
    )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
