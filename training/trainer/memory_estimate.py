"""What a run needs of each device's memory, counted before anything is loaded, and what to change where it cannot fit.

Counted from the model's configuration alone: parameters exactly (the network is built without memory), activations by
the tensors that a checkpointed block keeps and the largest that one block works with. An estimate: see
docs/distillation.md for what was measured beside it.
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
# Bytes per trained parameter: float32 weight, gradient and AdamW's two moments; and what the moving average takes.
_TRAINED, _AVERAGE = 16, 4
# What autograd keeps of a block beside the two halves of its feed-forward, in multiples of its tokens in bfloat16, as
# counted on networks of several widths: with all weights trained, with adapters, and by what an adapter's rank adds
# over the tokens' width.
_WHOLE, _ADAPTED, _RANK = 35.0, 25.0, 12.0
# What diffusers and transformers compute in here, in bytes: the autoencoder always, the text encoder on a GPU.
_WIDTHS = {VAE: 4, TEXT_ENCODER: 2}
# What CUDA, NCCL and the allocator take besides, in bytes, and the share of a device that can be filled.
BESIDES, _USABLE = 2e9, 0.95


@dataclass(frozen=True, slots=True)
class Part:
    """One line of a plan: bytes on each device, and what they are."""

    name: str
    size: float
    of: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run needs of each of `devices` devices for its largest bucket, and of the memory of their host, in bytes
    for each process, while networks are loaded, one after the other."""

    parts: tuple[Part, ...]
    devices: int
    bucket: Bucket
    clips: int
    host: float

    @property
    def total(self) -> float:
        """Bytes on each device."""
        return sum(part.size for part in self.parts)

    def refuse(self, memory: float) -> None:
        """Raises UsageError where it does not fit into devices of so many bytes, and says what would help."""
        if self.total > _USABLE * memory:
            largest = max(self.parts, key=lambda part: part.size)
            helps = (
                "More devices, `model.lora_rank`, `activation_checkpointing: true`, smaller clips or fewer of them in "
                "a micro-batch would help"
            )
            if _USABLE * memory < BESIDES:
                helps = "No run fits into so little"
            raise UsageError(
                f"this needs {self.total / _GB:.1f} GB on each of {self.devices} devices, which have "
                f"{memory / _GB:.1f} GB, of which {100 * _USABLE:.0f} % can be used; the most goes to {largest.name} "
                f"({largest.size / _GB:.1f} GB). {helps}"
            )


def of(run: Run, folder: Path, devices: int) -> Plan:
    """The plan of a run on so many devices, for the bucket whose micro-batches have most tokens. Raises UsageError
    where model or mixture cannot be read, or clips are beyond the network's positions."""
    buckets = _buckets(run)
    inner = model_folder.configuration(folder, model_folder.TRANSFORMER)
    for bucket, _ in buckets:
        latent = vcu.latent_shape((bucket.frames, bucket.height, bucket.width), 1, bucket.references)
        # [the default of diffusers' WanVACETransformer3DModel]
        models.check_positions(inner.get("rope_max_seq_len", 1024), (1, 2, 2), latent[2:])
    return sized(run, folder, *max(buckets, key=lambda one: one[0].tokens * one[1]), devices)


def sized(run: Run, folder: Path, bucket: Bucket, clips: int, devices: int) -> Plan:
    """The same for micro-batches of so many clips of a bucket, whatever the mixture holds."""
    parameters, shape = _counted(folder)
    width = assemble.kind(run.model).itemsize
    parts = [
        *_weights(run, parameters, shape, width, devices),
        *_activations(run, bucket.tokens * clips, shape, width),
        Part("CUDA, NCCL, allocator", BESIDES, "taken as 2 GB"),
        *_besides(run, folder),
    ]
    kept = 4 if run.model.lora_rank is None else width
    return Plan(tuple(parts), devices, bucket, clips, max(parameters * kept, _size(folder, TEXT_ENCODER)))


def _weights(run: Run, parameters: int, shape: dict[str, int], width: int, devices: int) -> list[Part]:
    per = f"of {parameters / 1e6:,.1f} million parameters, on {devices}"
    rank = run.model.lora_rank
    if rank is not None:
        adapter = rank * shape["adapted"]
        roles = 2 if isinstance(run, Distill) else 1
        trained = adapter * (_TRAINED * roles + _AVERAGE) / devices
        return [
            Part("frozen network", parameters * width / devices, per),
            Part("adapters", trained, f"{roles} of rank {rank}, {adapter / 1e6:.0f} million parameters each"),
            Part("a block gathered", 2 * shape["block"] * width, "the one that computes and the next one"),
        ]
    networks = 2 if isinstance(run, Distill) else 1
    found = [
        Part("trained networks", parameters * _TRAINED * networks / devices, f"{networks} x 16 bytes {per}"),
        Part("moving average", 2 * parameters * _AVERAGE / devices, f"and the weights while it is worn, {per}"),
        Part("blocks gathered", 2 * shape["block"] * width, "the one that computes and the next one"),
    ]
    if isinstance(run, Distill):
        found.insert(1, Part("teacher", parameters * width / devices, per))
    return found


def _activations(run: Run, tokens: int, shape: dict[str, int], width: int) -> list[Part]:
    one = tokens * shape["dim"] * width
    # Two graphs live at once where the discriminator compares real and fake; four with R1 and R2.
    graphs = 1
    if isinstance(run, Distill) and run.gan is not None:
        graphs = 4 if run.gan.smoothness else 2
    judge = 0.0
    if graphs > 1:
        # Features and their norm, in float32.
        judge = 2.0 * len(models.depths(shape["layers"])) * graphs * tokens * shape["dim"] * 4
    rank = run.model.lora_rank
    inside = _WHOLE if rank is None else _ADAPTED + _RANK * rank / shape["dim"]
    working = one * (inside + 2 * shape["ffn"] / shape["dim"])
    blocks = shape["layers"] + shape["vace"]
    if run.model.activation_checkpointing:
        # What goes into each block: into VACE's, two.
        inputs = blocks + shape["vace"]
        kept, of = float(inputs * one * graphs), f"what {blocks} checkpointed blocks keep, {graphs} times"
    else:
        kept, of = blocks * working * graphs, f"all that {blocks} blocks compute, {graphs} times"
    return [
        Part("activations kept", kept, of),
        Part("the discriminator's features", judge, f"{graphs} times"),
        Part("one block at work", working, f"{tokens} tokens"),
    ]


def _besides(run: Run, folder: Path) -> list[Part]:
    """What makes latents and embeddings, as far as it stays."""
    parts = (VAE, TEXT_ENCODER) if run.data.form == "pixels" else (VAE,)
    return [Part(part, _size(folder, part), f"in {8 * _WIDTHS[part]} bits") for part in parts]


def _size(folder: Path, part: str) -> float:
    """Bytes of a part's weights on a device. Raises MissingWeights where a file is damaged."""
    files = (folder / part).glob("*.safetensors")
    return float(_WIDTHS[part] * loading.tried(folder, part, lambda: sum(map(_numbers, files))))


def _numbers(file: Path) -> int:
    """How many numbers a file of safetensors holds."""
    with safe_open(file, "pt") as opened:
        names = opened.keys()
        return sum(math.prod(opened.get_slice(name).get_shape()) for name in names)


def _counted(folder: Path) -> tuple[int, dict[str, int]]:
    """The parameters of a folder's transformer, and its shape."""
    with torch.device("meta"):
        network: Any = models.scratch(folder)
    config = network.config
    dim = config.num_attention_heads * config.attention_head_dim
    linears = [
        module.in_features + module.out_features
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and name.endswith(tuple(f".{one}" for one in models.LORA_TARGETS))
    ]
    shape = {
        "dim": dim,
        "ffn": config.ffn_dim,
        "layers": config.num_layers,
        "vace": len(config.vace_layers),
        "block": sum(one.numel() for one in network.vace_blocks[-1].parameters()),
        "adapted": sum(linears),
    }
    return sum(one.numel() for one in network.parameters()), shape


def _buckets(run: Run) -> list[tuple[Bucket, int]]:
    """The buckets of a mixture at the size that they are trained at, and how many clips a micro-batch has of each."""
    mixture, table = read_all(run.data.mixture)
    size = run.data.size
    found = []
    for stored in Order(mixture, table).buckets:
        if size is not None and size.frames > stored.frames:
            raise UsageError(
                f"{run.data.mixture} has clips of {stored.frames} frames ({stored.task}), of which `data.size` wants "
                f"{size.frames}: `frames` of at most {stored.frames}, or a mixture of longer clips"
            )
        shown = stored if size is None else replace(stored, **size.model_dump())
        found.append((shown, mixture.step.count_clips(stored.tokens)))
    return found
