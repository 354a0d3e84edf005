"""A model that can be sampled: a run's newest checkpoint, with its average, or a folder that `vdot-train export` made.

The schedule comes with it, and no other is used.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from pipeline.errors import UsageError
from pipeline.strict import Strict, validated
from training import assemble, checkpoint, config, loading, model_folder, models, schedule
from training.model_folder import TEXT_ENCODER, VAE
from training.models import STUDENT, Conditions, Denoiser
from training.rollout import Noise, integrate, rollout
from training.schedule import Schedule

SCHEDULE = "schedule.json"
"""The file of an export that says how it is to be sampled."""
# [diffusers.loaders.lora_base.LORA_WEIGHT_NAME_SAFE]
_ADAPTERS = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How clean latents are made: few steps by the schedule that a student was distilled at, or a teacher's many."""

    schedule: Schedule | None
    steps: int
    shift: float
    cfg: float

    def make(self, network: Denoiser, conditions: Conditions, negative: Tensor, noise: Noise) -> Tensor:
        """Clean latents [B, 16, R + T', h, w], float32."""
        if self.schedule is not None:
            with torch.no_grad():
                return rollout(network, conditions, self.schedule, noise)
        return integrate(network, conditions, negative, noise(0), steps=self.steps, shift=self.shift, cfg=self.cfg)

    def as_json(self) -> dict[str, Any]:
        """What `sampling` reads."""
        if self.schedule is not None:
            return {"distilled": self.schedule.as_json()}
        return {"taught": {"steps": self.steps, "shift": self.shift, "cfg": self.cfg}}


class Taught(Strict):
    """How a teacher is sampled."""

    steps: config.Count
    shift: config.Positive
    cfg: Annotated[float, Field(ge=1)]


class Exported(Strict):
    """What an export says of itself: how it is sampled, and all settings that it was trained with."""

    distilled: dict[str, Any] | None = None
    taught: Taught | None = None
    step: int
    mixture: str
    config: dict[str, Any]
    earlier: list[checkpoint.Earlier]

    def sampling(self, where: Path) -> Sampling:
        """Raises UsageError where that is not said, or contradicts itself."""
        if self.taught is not None:
            return Sampling(None, self.taught.steps, self.taught.shift, self.taught.cfg)
        found = schedule.parse(self.distilled, str(where))
        return Sampling(found, found.steps, found.shift, 1.0)


def sampling_of(run: config.Run) -> Sampling:
    """How what a run trains is sampled."""
    if isinstance(run, config.Distill):
        return Sampling(run.schedule, run.schedule.steps, run.schedule.shift, 1.0)
    assert isinstance(run, config.Teach)
    return Sampling(None, run.sample_steps, run.shift, run.teacher_cfg)


@dataclass(frozen=True, slots=True)
class Trained:
    """A network, how it is sampled, the folder with its autoencoder and text encoder, what it was trained as, and the
    checkpoint that it comes from (None: an export)."""

    network: Denoiser
    sampling: Sampling
    folder: Path
    model: config.Model
    told: checkpoint.Told | None


def load(where: Path, device: torch.device) -> Trained:
    """What lies in a run's folder, a checkpoint, or an export; on a device, not to be trained.

    Raises UsageError where it is none of them, or its parts do not fit together.
    """
    if (where / SCHEDULE).is_file():
        damaged = f"{where / SCHEDULE} is damaged"
        exported = validated(Exported, _json(where / SCHEDULE), damaged)
        model = validated(config.Model, exported.config.get("model", {}), f"{damaged}: config.model")
        if (where / _ADAPTERS).is_file():
            raise UsageError(f"{where} has adapters alone, for other programs: name the run, or export without --lora")
        loading.together(where, where)
        found = models.load(where, torch.float32 if device.type == "cpu" else torch.bfloat16).to(device)
        return Trained(Denoiser(found, found.dtype), exported.sampling(where), where, model, None)
    at = checkpoint.latest(where / "checkpoints") or where
    if not (at / checkpoint.META).is_file():
        raise UsageError(f"{where} is no run with a checkpoint, no checkpoint, and no export of `vdot-train export`")
    told = checkpoint.read(at)
    run = config.parsed(told.kind, told.config, str(at))
    folder = model_folder.folder(run.model.folder, (model_folder.TRANSFORMER,))
    loading.together(assemble.student_folder(run.model, folder), folder)
    found_sampling = sampling_of(run)
    wanted = found_sampling.schedule
    if wanted is not None and (stored := schedule.parse(told.schedule, str(at))) != wanted:
        raise UsageError(f"{at} contradicts itself: its schedule is {stored}, its configuration's {wanted}")
    parts = [VAE, TEXT_ENCODER, *([] if run.model.lora_rank is None else [model_folder.TRANSFORMER])]
    checkpoint.fits(at, told, model_folder.fingerprints(folder, parts), folder)
    return Trained(_averaged(at, run, folder, device), found_sampling, folder, run.model, told)


def _averaged(at: Path, run: config.Run, folder: Path, device: torch.device) -> Denoiser:
    """The student of a checkpoint with its average for weights."""
    rank, adapter = run.model.lora_rank, None
    # As random as it was made: all weights come from the checkpoint, but those of a frozen base.
    if rank is None:
        found = models.scratch(assemble.student_folder(run.model, folder))
    else:
        found = models.load(folder, assemble.kind(run.model))
    if rank is not None:
        found, adapter = models.adapted(found, rank, (STUDENT,)), STUDENT
    denoiser = Denoiser(found, assemble.kind(run.model), adapter)
    wanted = {f"average.{STUDENT}.{name}": one.detach() for name, one in denoiser.trained()}
    if more := {name for name in checkpoint.names(at) if name.startswith(f"average.{STUDENT}.")} - {*wanted}:
        raise UsageError(f"{at} is of another model than {folder}: {sorted(more)[0]} and {len(more) - 1} others")
    checkpoint.load(at, wanted)
    if rank is None and device.type != "cpu":
        # As an export is loaded there: in float32 a large one would not fit.
        models.narrowed(found, denoiser.dtype)
    found.requires_grad_(False).to(device)
    return denoiser


def _json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{file} cannot be read ({error})") from error
