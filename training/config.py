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
from training.objectives.ot import TransportOptions

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1, le=10**12)]


class Size(StrictModel):
    """The size of clips in training: scaled and cropped. Only for data of the form pixels."""

    frames: Count
    """Their first frames, 4n + 1."""
    height: Annotated[int, Field(ge=16, multiple_of=16)]
    """In pixels."""
    width: Annotated[int, Field(ge=16, multiple_of=16)]
    """In pixels."""

    @model_validator(mode="after")
    def _check_frames(self) -> Size:
        if self.frames % 4 != 1:
            raise ValueError(f"a clip has 4n + 1 frames, not {self.frames}")
        return self


class Model(StrictModel):
    """The base model."""

    folder: str
    """A VACE model in diffusers' layout, or a hub id: the teacher, and the student's initial weights unless `student`
    names another model."""
    student: str | None = None
    """Another model for the student's initial weights."""
    lora_rank: Annotated[int, Field(ge=1, le=1024)] | None = None
    """The rank of adapters on one frozen network; without it all weights are trained."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """The type that networks compute in."""
    activation_checkpointing: bool = True
    """Whether activations are computed again in the backward pass, to save memory."""
    text_tokens: Annotated[int, Field(ge=1, le=512)] = 512
    """Longer captions are truncated; with stored latents, which have up to 512 tokens, their embeddings are."""
    negative_prompt: str = ""
    """The prompt that guidance leads away from."""

    @field_validator("negative_prompt")
    @classmethod
    def _check_encodable(cls, prompt: str) -> str:
        # YAML can spell lone surrogates, which no tokenizer accepts.
        prompt.encode()
        return prompt


class Data(StrictModel):
    """The training data: a mixture made by `vdot-data mix`, as latents of the model or as pixels."""

    mixture: str
    """The folder or URL of the mixture."""
    form: Literal["latents", "pixels"] = "latents"
    """Whether stored latents are read, or clips are decoded and encoded."""
    size: Size | None = None
    """The size of clips, if it is not the stored one."""
    workers: Annotated[int, Field(ge=0, le=128)] = 2
    """Processes that load data, for each process of the run."""
    cache: str | None = None
    """A folder that keeps what was read from an object store."""

    @model_validator(mode="after")
    def _check_size(self) -> Data:
        if self.size is not None and self.form != "pixels":
            raise ValueError("latents have the size that they were stored in: `size` needs `form: pixels`")
        return self


class Optimizer(StrictModel):
    """AdamW."""

    lr: Annotated[float, Field(gt=0, le=1)]
    """The learning rate."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.0, 0.999)
    """The decay rates of both moments."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled from the gradient."""
    clip: Positive = 10.0
    """The largest norm of all gradients together."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Updates until the full rate is reached."""


class EMA(StrictModel):
    """The exponential moving average of the trained weights, which is evaluated, sampled and exported."""

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """The share of the average that an update keeps."""
    start: Annotated[int, Field(ge=0)] = 200
    """The updates after which it starts, as a copy of the weights."""


class Saves(StrictModel):
    """Checkpoints."""

    every: Count = 200
    """Steps from one to the next."""
    keep: Count = 3
    """How many are kept; the newest is never removed."""


class Evaluation(StrictModel):
    """Samples of the same held-out clips."""

    every: Annotated[int, Field(ge=0)] = 200
    """Steps from one evaluation to the next; 0: never."""
    clips: Count = 4
    """How many clips."""

    def is_due(self, step: int) -> bool:
        """Whether samples are made after this step."""
        return self.every > 0 and step % self.every == 0


class Run(StrictModel):
    """Settings shared by teaching and distilling."""

    model: Model
    """The base model."""
    data: Data
    """The training data."""
    steps: Count
    """Steps of the stream; each makes one update or several."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Decides every random number, together with its purpose and the position in the stream."""
    average: EMA = EMA()
    """The moving average of the weights."""
    saves: Saves = Saves()
    """Checkpoints."""
    evaluation: Evaluation = Evaluation()
    """Samples while training."""


class Teach(Run):
    """Flow matching of a VACE model."""

    scratch: bool = False
    """Whether it starts from random weights in the shape of the folder's."""
    optimizer: Optimizer
    """The optimizer."""
    shift: Positive = 5.0
    """The shift of noise levels, in training and in sampling."""
    teacher_cfg: Annotated[float, Field(ge=1)] = 4.0
    """The guidance of sampling."""
    sample_steps: Count = 25
    """The steps of sampling."""

    @model_validator(mode="after")
    def _check_networks(self) -> Teach:
        if self.model.lora_rank is not None or self.model.student is not None:
            raise ValueError("teaching trains all weights of `model.folder`: it takes no `lora_rank` and no `student`")
        return self


class DiscriminatorOptions(StrictModel):
    """The discriminator and the adversarial loss."""

    ratio: Positive = 0.1
    """The norm of its gradient at the student's sample over that of the other gradient."""
    start: Annotated[int, Field(ge=0)] = 200
    """The student's updates before it applies; until then only the discriminator learns."""
    lr: Annotated[float, Field(gt=0, le=1)] = 2e-5
    """The discriminator's learning rate: it starts from random weights and must learn faster than fine-tuned
    networks."""
    critic_weight: Positive = 0.01
    """The weight of its loss relative to the fake score's."""
    smoothness: Annotated[float, Field(ge=0)] = 1e-4
    """The weight of approximate R1 and R2, at `noise`. As large as FastGen's at VACE's 32,760 tokens: 100 to 1000 x
    0.1^2 / 32,760."""
    noise: Positive = 0.05
    """The deviation of the noise that approximates R1 and R2."""
    width: Annotated[int, Field(ge=8, le=16384, multiple_of=8)] = 512
    """The width of the discriminator's head."""


class Distill(Run):
    """VDOT's loop: the fake score is updated each step, the student each `student_every`th."""

    schedule: Schedule = Schedule()
    """The student's steps."""
    levels: Levels = Levels()
    """The noise levels that scores are compared at."""
    teacher_cfg: Annotated[float, Field(ge=1)] = 4.0
    """The teacher's guidance."""
    student: Optimizer
    """The student's optimizer."""
    critic: Optimizer
    """The optimizer of the fake score."""
    student_every: Count = 5
    """Steps from one update of the student to the next."""
    transport: TransportOptions | None = TransportOptions()
    """Optimal transport; null for none."""
    gan: DiscriminatorOptions | None = DiscriminatorOptions()
    """The discriminator; null for none."""
    objective: Literal["combined", "per_frame", "published"] = "combined"
    """`combined`: one gradient in which weights mean the same at every resolution. `per_frame`: that gradient with all
    frames at one norm (the control for VDOT's hidden normalisation). `published`: the released trainer's alternating
    steps and its reductions, for comparison."""

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
