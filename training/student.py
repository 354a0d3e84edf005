"""A model that can be sampled: a run's newest checkpoint, with its average, or a folder that `vdot-train export` made.

The schedule comes with it, and no other is used.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UsageError
from training import assemble, checkpoint, config, model_folder, models, schedule
from training.model_folder import TEXT_ENCODER, VAE
from training.models import STUDENT, Conditions, Denoiser
from training.rollout import Noise, integrate, rollout
from training.schedule import Schedule

SCHEDULE = "schedule.json"
"""The file of an export that says how it is to be sampled."""


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


def sampling(told: Any, where: Path) -> Sampling:
    """How a model is sampled, as it was stored. Raises UsageError where that says nothing."""
    if isinstance(told, dict) and "distilled" in told:
        found = schedule.parse(told["distilled"], str(where))
        return Sampling(found, found.steps, found.shift, 1.0)
    try:
        taught = told["taught"]
        return Sampling(None, int(taught["steps"]), float(taught["shift"]), float(taught["cfg"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{where} does not say how it is sampled ({error!r})") from error


def sampling_of(run: config.Run) -> Sampling:
    """How what a run trains is sampled."""
    if isinstance(run, config.Distill):
        return Sampling(run.schedule, run.schedule.steps, run.schedule.shift, 1.0)
    assert isinstance(run, config.Teach)
    return Sampling(None, run.sample_steps, run.shift, run.teacher_cfg)


@dataclass(frozen=True, slots=True)
class Trained:
    """A network, how it is sampled, the folder with its autoencoder and text encoder, what it was trained as (None: an
    export does not say), and the checkpoint it comes from."""

    network: Denoiser
    sampling: Sampling
    folder: Path
    run: config.Run | None
    told: dict[str, Any]

    @property
    def tokens(self) -> int:
        """How many tokens of text it was trained with."""
        return int(self.told["config"]["model"]["text_tokens"])


def load(where: Path, device: torch.device) -> Trained:
    """What lies in a run's folder, a checkpoint, or an export; on a device, not to be trained.

    Raises UsageError where it is none of them, or its parts do not fit together.
    """
    if (where / SCHEDULE).is_file():
        told = _json(where / SCHEDULE)
        found = models.load(where, torch.float32 if device.type == "cpu" else torch.bfloat16).to(device)
        return Trained(Denoiser(found, found.dtype), sampling(told, where), where, None, told)
    at = checkpoint.latest(where / "checkpoints") or where
    if not (at / checkpoint.META).is_file():
        raise UsageError(f"{where} is no run with a checkpoint, no checkpoint, and no export of `vdot-train export`")
    told = checkpoint.read(at)
    run = config.parsed(told["kind"], told["config"], str(at))
    folder = model_folder.folder(run.model.folder, (model_folder.TRANSFORMER,))
    found_sampling = sampling_of(run)
    wanted = found_sampling.schedule
    if wanted is not None and (stored := schedule.parse(told["schedule"], str(at))) != wanted:
        raise UsageError(f"{at} contradicts itself: its schedule is {stored}, its configuration's {wanted}")
    parts = [VAE, TEXT_ENCODER, *([] if run.model.lora_rank is None else [model_folder.TRANSFORMER])]
    checkpoint.fits(at, told, model_folder.fingerprints(folder, parts), folder)
    return Trained(_averaged(at, run, folder, device), found_sampling, folder, run, told)


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
    found.requires_grad_(False).to(device)
    return denoiser


def _json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{file} cannot be read ({error})") from error
