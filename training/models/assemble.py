"""Assembly of a run's networks from its configuration: loading, adapters, sharding and roles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.config import DiscriminatorOptions, Distill, Model, Run, Teach
from training.distributed import World, shard_module
from training.models import folder as model_folder
from training.models import networks
from training.models.discriminator import Discriminator
from training.models.networks import FAKE, STUDENT, Denoiser


@dataclass(frozen=True, slots=True)
class Networks:
    """The networks of distillation by role; `discriminator`: given if the configuration has a `gan`."""

    student: Denoiser
    fake: Denoiser
    teacher: Denoiser
    discriminator: Discriminator | None


def build_distillation(config: Distill, folder: Path, world: World) -> Networks:
    """The three networks and the discriminator, on this process's device. Raises as `networks.load`."""
    # Random weights must be the same in every process.
    torch.manual_seed(config.seed)
    dtype = compute_dtype(config.model)
    if config.model.lora_rank is not None:
        base = networks.add_adapters(networks.load(folder, dtype), config.model.lora_rank)
        _place(base, config, world)
        student, fake, teacher = (Denoiser(base, dtype, name) for name in (STUDENT, FAKE, None))
    else:
        begins_as = student_folder(config.model, folder)
        # One after the other, so that only one unsharded network is on the host at a time.
        student, fake, teacher = (
            Denoiser(_place(networks.load(path, weight_dtype), config, world), dtype)
            for path, weight_dtype in ((begins_as, torch.float32), (folder, torch.float32), (folder, dtype))
        )
    discriminator = None
    if config.gan is not None:
        discriminator = make_discriminator(fake, config.gan)
        shard_module(discriminator, discriminator.looks, torch.float32, world.device)
    return Networks(student, fake, teacher, discriminator)


def build_teaching(config: Teach, folder: Path, world: World) -> Denoiser:
    """The network to train: with the folder's weights, or random ones in its shape."""
    torch.manual_seed(config.seed)
    transformer = networks.init_random(folder) if config.scratch else networks.load(folder, torch.float32)
    return Denoiser(_place(transformer, config, world), compute_dtype(config.model))


def make_discriminator(fake_score: Denoiser, options: DiscriminatorOptions) -> Discriminator:
    """A discriminator with random weights for the features of a fake score."""
    config = fake_score.transformer.config
    dim = config.num_attention_heads * config.attention_head_dim
    return Discriminator(dim, len(networks.feature_depths(config.num_layers)), options.width)


def compute_dtype(model: Model) -> torch.dtype:
    """The dtype that networks compute in."""
    dtype: torch.dtype = getattr(torch, model.dtype)
    return dtype


def student_folder(model: Model, folder: Path) -> Path:
    """The folder of the student's shape and initial weights: the teacher's, unless the settings name another."""
    return folder if model.student is None else model_folder.resolve_folder(model.student, (model_folder.TRANSFORMER,))


def _place(transformer: Any, config: Run, world: World) -> Any:
    if config.model.activation_checkpointing:
        transformer.enable_gradient_checkpointing()
    blocks = [*transformer.blocks, *transformer.vace_blocks]
    return shard_module(
        transformer, blocks, compute_dtype(config.model), world.device, exact=[networks.get_time_embedder(transformer)]
    )
