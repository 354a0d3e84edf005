"""A model ready for sampling: the EMA of a run's newest checkpoint, or a folder made by `vdot-train export`.

It is sampled with the schedule stored in it, and no other.
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
from training.sampling import samplers
from training.sampling.samplers import Sampler, StudentSampler, TeacherSampler
from training.trainer import checkpoint

SCHEDULE = "schedule.json"
"""The file of an export that states how to sample it."""
# [diffusers.loaders.lora_base.LORA_WEIGHT_NAME_SAFE]
_ADAPTERS = "pytorch_lora_weights.safetensors"


class Exported(StrictModel):
    """The content of an export's `schedule.json`: how to sample it, and all settings that it was trained with."""

    distilled: dict[str, Any] | None = None
    taught: TeacherSampler | None = None
    step: int
    mixture: str
    config: dict[str, Any]
    earlier: list[checkpoint.EarlierConfig]

    def make_sampler(self, where: Path) -> Sampler:
        """The sampler. Raises UsageError if it is not stated, or contradicts itself."""
        return self.taught or StudentSampler(schedule.parse(self.distilled, str(where)))


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A network, its sampler, the folder with its autoencoder and text encoder, the model settings of its run, and the
    metadata of its checkpoint (None: an export)."""

    network: Denoiser
    sampler: Sampler
    folder: Path
    model: config.Model
    metadata: checkpoint.Metadata | None


def load(where: Path, device: torch.device) -> TrainedModel:
    """The model in a run's folder, a checkpoint or an export; on a device, frozen.

    Raises UsageError if it is none of them, or its parts do not fit together.
    """
    if (where / SCHEDULE).is_file():
        damaged = f"{where / SCHEDULE} is damaged"
        exported = validate(Exported, _json(where / SCHEDULE), damaged)
        model = validate(config.Model, exported.config.get("model", {}), f"{damaged}: config.model")
        if (where / _ADAPTERS).is_file():
            raise UsageError(f"{where} has only adapters, for other programs: name the run, or export without --lora")
        loading.check_pair(where, where)
        transformer = networks.load(where, torch.float32 if device.type == "cpu" else torch.bfloat16).to(device)
        return TrainedModel(Denoiser(transformer, transformer.dtype), exported.make_sampler(where), where, model, None)
    path = checkpoint.latest(where / "checkpoints") or where
    if not (path / checkpoint.META).is_file():
        raise UsageError(f"{where} is not a run with a checkpoint, a checkpoint, or an export of `vdot-train export`")
    metadata = checkpoint.read(path)
    run = config.parse_stored(metadata.kind, metadata.config, str(path))
    folder = model_folder.resolve_folder(run.model.folder, (model_folder.TRANSFORMER,))
    loading.check_pair(assemble.student_folder(run.model, folder), folder)
    if isinstance(run, config.Distill) and (stored := schedule.parse(metadata.schedule, str(path))) != run.schedule:
        raise UsageError(f"{path} contradicts itself: its schedule is {stored}, its configuration's {run.schedule}")
    parts = [VAE, TEXT_ENCODER, *([] if run.model.lora_rank is None else [model_folder.TRANSFORMER])]
    checkpoint.check_base(path, metadata, model_folder.fingerprints(folder, parts), folder)
    return TrainedModel(_load_ema(path, run, folder, device), samplers.for_run(run), folder, run.model, metadata)


def _load_ema(path: Path, run: config.Run, folder: Path, device: torch.device) -> Denoiser:
    """The student of a checkpoint with its EMA as weights."""
    rank, adapter = run.model.lora_rank, None
    # Random weights suffice: all of them come from the checkpoint, except those of a frozen base.
    if rank is None:
        transformer = networks.init_random(assemble.student_folder(run.model, folder))
    else:
        transformer = networks.load(folder, assemble.compute_dtype(run.model))
    if rank is not None:
        transformer, adapter = networks.add_adapters(transformer, rank, (STUDENT,)), STUDENT
    denoiser = Denoiser(transformer, assemble.compute_dtype(run.model), adapter)
    ema_tensors = {f"average.{STUDENT}.{name}": parameter.detach() for name, parameter in denoiser.trained_parameters()}
    if unexpected := {name for name in checkpoint.tensor_names(path) if name.startswith(f"average.{STUDENT}.")} - {
        *ema_tensors
    }:
        raise UsageError(
            f"{path} is of another model than {folder}: {sorted(unexpected)[0]} and {len(unexpected) - 1} others"
        )
    checkpoint.load(path, ema_tensors)
    if rank is None and device.type != "cpu":
        # As an export is loaded: a large model would not fit in float32.
        networks.cast_weights(transformer, denoiser.dtype)
    transformer.requires_grad_(False).to(device)
    return denoiser


def _json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{file} cannot be read ({error})") from error
