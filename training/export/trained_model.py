"""A model that can be sampled: a run's newest checkpoint, with its average, or a folder that `vdot-train export` made.

The schedule comes with it, and no other is used.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import UsageError
from pipeline.formats.strict_yaml import StrictModel, validate
from training import config
from training.diffusion import schedule
from training.models import assemble, loading, networks
from training.models import folder as model_folder
from training.models.folder import TEXT_ENCODER, VAE
from training.models.networks import STUDENT, Denoiser
from training.sampling import samplers as sampling
from training.sampling.samplers import Few, Many, Sampling
from training.trainer import checkpoint

SCHEDULE = "schedule.json"
"""The file of an export that says how it is to be sampled."""
# [diffusers.loaders.lora_base.LORA_WEIGHT_NAME_SAFE]
_ADAPTERS = "pytorch_lora_weights.safetensors"


class Exported(StrictModel):
    """What an export says of itself: how it is sampled, and all settings that it was trained with."""

    distilled: dict[str, Any] | None = None
    taught: Many | None = None
    step: int
    mixture: str
    config: dict[str, Any]
    earlier: list[checkpoint.Earlier]

    def sampling(self, where: Path) -> Sampling:
        """Raises UsageError where that is not said, or contradicts itself."""
        return self.taught or Few(schedule.parse(self.distilled, str(where)))


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
        exported = validate(Exported, _json(where / SCHEDULE), damaged)
        model = validate(config.Model, exported.config.get("model", {}), f"{damaged}: config.model")
        if (where / _ADAPTERS).is_file():
            raise UsageError(f"{where} has adapters alone, for other programs: name the run, or export without --lora")
        loading.together(where, where)
        found = networks.load(where, torch.float32 if device.type == "cpu" else torch.bfloat16).to(device)
        return Trained(Denoiser(found, found.dtype), exported.sampling(where), where, model, None)
    at = checkpoint.latest(where / "checkpoints") or where
    if not (at / checkpoint.META).is_file():
        raise UsageError(f"{where} is no run with a checkpoint, no checkpoint, and no export of `vdot-train export`")
    told = checkpoint.read(at)
    run = config.parsed(told.kind, told.config, str(at))
    folder = model_folder.folder(run.model.folder, (model_folder.TRANSFORMER,))
    loading.together(assemble.student_folder(run.model, folder), folder)
    if isinstance(run, config.Distill) and (stored := schedule.parse(told.schedule, str(at))) != run.schedule:
        raise UsageError(f"{at} contradicts itself: its schedule is {stored}, its configuration's {run.schedule}")
    parts = [VAE, TEXT_ENCODER, *([] if run.model.lora_rank is None else [model_folder.TRANSFORMER])]
    checkpoint.fits(at, told, model_folder.fingerprints(folder, parts), folder)
    return Trained(_averaged(at, run, folder, device), sampling.of(run), folder, run.model, told)


def _averaged(at: Path, run: config.Run, folder: Path, device: torch.device) -> Denoiser:
    """The student of a checkpoint with its average for weights."""
    rank, adapter = run.model.lora_rank, None
    # As random as it was made: all weights come from the checkpoint, but those of a frozen base.
    if rank is None:
        found = networks.scratch(assemble.student_folder(run.model, folder))
    else:
        found = networks.load(folder, assemble.kind(run.model))
    if rank is not None:
        found, adapter = networks.adapted(found, rank, (STUDENT,)), STUDENT
    denoiser = Denoiser(found, assemble.kind(run.model), adapter)
    wanted = {f"average.{STUDENT}.{name}": one.detach() for name, one in denoiser.trained()}
    if more := {name for name in checkpoint.names(at) if name.startswith(f"average.{STUDENT}.")} - {*wanted}:
        raise UsageError(f"{at} is of another model than {folder}: {sorted(more)[0]} and {len(more) - 1} others")
    checkpoint.load(at, wanted)
    if rank is None and device.type != "cpu":
        # As an export is loaded there: in float32 a large one would not fit.
        networks.narrowed(found, denoiser.dtype)
    found.requires_grad_(False).to(device)
    return denoiser


def _json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{file} cannot be read ({error})") from error
