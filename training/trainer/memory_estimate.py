"""The memory that a run needs on each device, estimated before anything is loaded, and what to change if it cannot fit.

Estimated from the model's configuration alone: parameters exactly (the network is built without memory), activations
by the tensors that a checkpointed block keeps and the most that one block works with. docs/distillation.md compares the
estimate with measurements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from pipeline.errors import UsageError
from pipeline.mixture.mixture import Bucket, read_all
from pipeline.mixture.order import Order
from training.config import Distill, Run
from training.encoding import vcu
from training.models import assemble, loading
from training.models import folder as model_folder
from training.models import networks as models
from training.models.folder import TEXT_ENCODER, VAE

_GB = 1e9
# Bytes per trained parameter: float32 weight, gradient and AdamW's two moments; and of its moving average.
_TRAINED, _AVERAGE = 16, 4
# What autograd keeps of a block, without the two halves of its feed-forward, in multiples of its tokens in bfloat16, as
# counted on networks of several widths: with all weights trained, with adapters, and what an adapter's rank adds
# relative to the tokens' width.
_FULL_TENSORS, _LORA_TENSORS, _RANK_TENSORS = 35.0, 25.0, 12.0
# Bytes per weight here: of the autoencoder always, of the text encoder on a GPU.
_WIDTHS = {VAE: 4, TEXT_ENCODER: 2}
# What CUDA, NCCL and the allocator take, in bytes, and the share of a device that can be filled.
OVERHEAD, _USABLE = 2e9, 0.95


@dataclass(frozen=True, slots=True)
class Part:
    """One line of a plan: bytes on each device, and what they are for."""

    name: str
    size: float
    detail: str


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The memory that a run needs on each of `devices` devices for its largest bucket, and on their host, in bytes for
    each process, while networks are loaded one after the other."""

    parts: tuple[Part, ...]
    devices: int
    bucket: Bucket
    clips: int
    host: float

    @property
    def total(self) -> float:
        """Bytes on each device."""
        return sum(part.size for part in self.parts)

    def check_fits(self, memory: float) -> None:
        """Raises UsageError if it does not fit into devices of `memory` bytes, with advice on what would help."""
        if self.total > _USABLE * memory:
            largest = max(self.parts, key=lambda part: part.size)
            advice = (
                "More devices, `model.lora_rank`, `activation_checkpointing: true`, smaller clips or fewer of them in "
                "a micro-batch would help"
            )
            if _USABLE * memory < OVERHEAD:
                advice = "No run fits into so little"
            raise UsageError(
                f"this needs {self.total / _GB:.1f} GB on each of {self.devices} devices, which have "
                f"{memory / _GB:.1f} GB, of which {100 * _USABLE:.0f} % can be used; the most goes to {largest.name} "
                f"({largest.size / _GB:.1f} GB). {advice}"
            )


def estimate(run: Run, folder: Path, devices: int) -> MemoryPlan:
    """The plan of a run on some number of devices, for the bucket whose micro-batches have the most tokens. Raises
    UsageError if the model or mixture cannot be read, or clips exceed the network's positions."""
    buckets = _buckets(run)
    config = model_folder.configuration(folder, model_folder.TRANSFORMER)
    for bucket, _ in buckets:
        latent = vcu.latent_shape((bucket.frames, bucket.height, bucket.width), 1, bucket.references)
        # [the default of diffusers' WanVACETransformer3DModel]
        models.check_positions(config.get("rope_max_seq_len", 1024), (1, 2, 2), latent[2:])
    return estimate_bucket(run, folder, *max(buckets, key=lambda entry: entry[0].tokens * entry[1]), devices)


def estimate_bucket(run: Run, folder: Path, bucket: Bucket, clips: int, devices: int) -> MemoryPlan:
    """The same for micro-batches of `clips` clips of a bucket, whatever the mixture holds."""
    parameters, shape = _inspect_transformer(folder)
    width = assemble.compute_dtype(run.model).itemsize
    parts = [
        *_weights(run, parameters, shape, width, devices),
        *_activations(run, bucket.tokens * clips, shape, width),
        Part("CUDA, NCCL, allocator", OVERHEAD, "taken as 2 GB"),
        *_encoder_parts(run, folder),
    ]
    loaded_width = 4 if run.model.lora_rank is None else width
    return MemoryPlan(
        tuple(parts), devices, bucket, clips, max(parameters * loaded_width, _part_bytes(folder, TEXT_ENCODER))
    )


def _weights(run: Run, parameters: int, shape: dict[str, int], width: int, devices: int) -> list[Part]:
    detail = f"of {parameters / 1e6:,.1f} million parameters, on {devices}"
    rank = run.model.lora_rank
    if rank is not None:
        adapter = rank * shape["adapted"]
        roles = 2 if isinstance(run, Distill) else 1
        trained = adapter * (_TRAINED * roles + _AVERAGE) / devices
        return [
            Part("frozen network", parameters * width / devices, detail),
            Part("adapters", trained, f"{roles} of rank {rank}, {adapter / 1e6:.0f} million parameters each"),
            Part("a block gathered", 2 * shape["block"] * width, "the one that computes and the next one"),
        ]
    networks = 2 if isinstance(run, Distill) else 1
    parts = [
        Part("trained networks", parameters * _TRAINED * networks / devices, f"{networks} x 16 bytes {detail}"),
        Part(
            "moving average", 2 * parameters * _AVERAGE / devices, f"and the weights while it replaces them, {detail}"
        ),
        Part("blocks gathered", 2 * shape["block"] * width, "the one that computes and the next one"),
    ]
    if isinstance(run, Distill):
        parts.insert(1, Part("teacher", parameters * width / devices, detail))
    return parts


def _activations(run: Run, tokens: int, shape: dict[str, int], width: int) -> list[Part]:
    hidden_bytes = tokens * shape["dim"] * width
    # Two graphs are alive at once when the discriminator compares real and fake; four with R1 and R2.
    graphs = 1
    if isinstance(run, Distill) and run.gan is not None:
        graphs = 4 if run.gan.smoothness else 2
    discriminator = 0.0
    if graphs > 1:
        # Features and their norm, in float32.
        discriminator = 2.0 * len(models.feature_depths(shape["layers"])) * graphs * tokens * shape["dim"] * 4
    rank = run.model.lora_rank
    tensors = _FULL_TENSORS if rank is None else _LORA_TENSORS + _RANK_TENSORS * rank / shape["dim"]
    block_bytes = hidden_bytes * (tensors + 2 * shape["ffn"] / shape["dim"])
    blocks = shape["layers"] + shape["vace"]
    if run.model.activation_checkpointing:
        # The inputs of each block: VACE's have two.
        inputs = blocks + shape["vace"]
        kept_bytes, detail = (
            float(inputs * hidden_bytes * graphs),
            f"what {blocks} checkpointed blocks keep, {graphs} times",
        )
    else:
        kept_bytes, detail = blocks * block_bytes * graphs, f"all that {blocks} blocks compute, {graphs} times"
    return [
        Part("activations kept", kept_bytes, detail),
        Part("the discriminator's features", discriminator, f"{graphs} times"),
        Part("one block at work", block_bytes, f"{tokens} tokens"),
    ]


def _encoder_parts(run: Run, folder: Path) -> list[Part]:
    """The encoders that stay on the device during training."""
    parts = (VAE, TEXT_ENCODER) if run.data.form == "pixels" else (VAE,)
    return [Part(part, _part_bytes(folder, part), f"in {8 * _WIDTHS[part]} bits") for part in parts]


def _part_bytes(folder: Path, part: str) -> float:
    """Bytes of a part's weights on a device. Raises MissingWeights if a file is damaged."""
    files = (folder / part).glob("*.safetensors")
    return float(_WIDTHS[part] * loading.call_loader(folder, part, lambda: sum(map(_count_numbers, files))))


def _count_numbers(file: Path) -> int:
    """How many numbers a safetensors file holds."""
    with safe_open(file, "pt") as opened:
        names = opened.keys()
        return sum(math.prod(opened.get_slice(name).get_shape()) for name in names)


def _inspect_transformer(folder: Path) -> tuple[int, dict[str, int]]:
    """The number of parameters of a folder's transformer, and its shape."""
    with torch.device("meta"):
        network: Any = models.init_random(folder)
    config = network.config
    dim = config.num_attention_heads * config.attention_head_dim
    linears = [
        module.in_features + module.out_features
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear)
        and name.endswith(tuple(f".{parameter}" for parameter in models.LORA_TARGETS))
    ]
    shape = {
        "dim": dim,
        "ffn": config.ffn_dim,
        "layers": config.num_layers,
        "vace": len(config.vace_layers),
        "block": sum(parameter.numel() for parameter in network.vace_blocks[-1].parameters()),
        "adapted": sum(linears),
    }
    return sum(parameter.numel() for parameter in network.parameters()), shape


def _buckets(run: Run) -> list[tuple[Bucket, int]]:
    """The buckets of a mixture at the size used in training, and how many clips a micro-batch of each has."""
    mixture, table = read_all(run.data.mixture)
    size = run.data.size
    buckets = []
    for stored in Order(mixture, table).buckets:
        if size is not None and size.frames > stored.frames:
            raise UsageError(
                f"{run.data.mixture} has clips of {stored.frames} frames ({stored.task}), of which `data.size` wants "
                f"{size.frames}: `frames` of at most {stored.frames}, or a mixture of longer clips"
            )
        bucket = stored if size is None else replace(stored, **size.model_dump())
        buckets.append((bucket, mixture.step.count_clips(stored.tokens)))
    return buckets
