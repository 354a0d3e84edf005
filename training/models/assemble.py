"""The networks of a run, put together from its configuration: loaded, adapted, sharded and each given its part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.config import Adversary, Distill, Model, Run, Teach
from training.distributed import World, sharded
from training.models import folder as model_folder
from training.models import networks
from training.models.discriminator import Discriminator
from training.models.networks import FAKE, STUDENT, Denoiser


@dataclass(frozen=True, slots=True)
class Networks:
    """Who plays which part in distillation; `judge`: with a `gan` in the configuration."""

    student: Denoiser
    fake: Denoiser
    teacher: Denoiser
    judge: Discriminator | None


def distillation(config: Distill, folder: Path, world: World) -> Networks:
    """The three networks and the discriminator, on this process's device. Raises as `models.load`."""
    # Whatever is made at random is the same in every process.
    torch.manual_seed(config.seed)
    dtype = kind(config.model)
    if config.model.lora_rank is not None:
        base = networks.adapted(networks.load(folder, dtype), config.model.lora_rank)
        _placed(base, config, world)
        student, fake, teacher = (Denoiser(base, dtype, name) for name in (STUDENT, FAKE, None))
    else:
        begins_as = student_folder(config.model, folder)
        # One after the other: no more than one is whole on the host.
        student, fake, teacher = (
            Denoiser(_placed(networks.load(where, kept), config, world), dtype)
            for where, kept in ((begins_as, torch.float32), (folder, torch.float32), (folder, dtype))
        )
    judge = None
    if config.gan is not None:
        judge = judging(fake, config.gan)
        sharded(judge, judge.looks, torch.float32, world.device)
    return Networks(student, fake, teacher, judge)


def teaching(config: Teach, folder: Path, world: World) -> Denoiser:
    """The network that learns: the folder's weights, or random ones of its shape."""
    torch.manual_seed(config.seed)
    found = networks.scratch(folder) if config.scratch else networks.load(folder, torch.float32)
    return Denoiser(_placed(found, config, world), kind(config.model))


def judging(fake: Denoiser, options: Adversary) -> Discriminator:
    """A discriminator of random weights for the features of a fake score."""
    inner = fake.transformer.config
    dim = inner.num_attention_heads * inner.attention_head_dim
    return Discriminator(dim, len(networks.depths(inner.num_layers)), options.width)


def kind(model: Model) -> torch.dtype:
    """What networks compute in."""
    found: torch.dtype = getattr(torch, model.dtype)
    return found


def student_folder(model: Model, folder: Path) -> Path:
    """Where the student's shape and first weights lie: the teacher's folder, unless another is named."""
    return folder if model.student is None else model_folder.folder(model.student, (model_folder.TRANSFORMER,))


def _placed(transformer: Any, config: Run, world: World) -> Any:
    if config.model.activation_checkpointing:
        transformer.enable_gradient_checkpointing()
    blocks = [*transformer.blocks, *transformer.vace_blocks]
    return sharded(transformer, blocks, kind(config.model), world.device, exact=[networks.time_embedder(transformer)])
