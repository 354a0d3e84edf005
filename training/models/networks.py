"""The networks of a run: VACE transformers from a folder in diffusers' layout, and who plays which part.

In full fine-tuning the student and the fake score are networks of their own beside the frozen teacher. With LoRA there
is one frozen network: the teacher is it alone, the student and the fake score are it with an adapter each.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from pipeline.errors import UsageError
from training.diffusion.flow_matching import clean_of
from training.diffusion.schedule import TIMESTEPS
from training.models import folder as model_folder
from training.models import loading
from training.models.folder import TRANSFORMER

STUDENT, FAKE = "student", "fake"
# What LoRA adapts: the projections of attention and of the feed-forward, in Wan's blocks and in VACE's.
LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
# How deep the features that a discriminator sees are taken, as shares of the blocks.
_DEPTHS = (0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True)
class Conditions:
    """What B clips are made from: `text` [B, tokens, dim] and `context` [B, 96, R + T', h, w]; see `vcu`."""

    text: Tensor
    context: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the latents that are made from them, [B, 16, R + T', h, w]."""
        batch, _, *sides = self.context.shape
        return batch, 16, *sides

    def with_text(self, text: Tensor) -> Conditions:
        """The same with one other text for all, [1, tokens, dim]."""
        return Conditions(text.to(self.text).expand(len(self.context), -1, -1), self.context)


@dataclass(frozen=True, slots=True)
class Denoiser:
    """A transformer in one part: it says the velocity, or the clean latent, of a noisy one, and computes in `dtype`.

    `adapter`: the name of its LoRA; None: the network alone. Noisy latents are [B, 16, R + T', h, w], `sigma` is [B].
    """

    transformer: Any
    dtype: torch.dtype
    adapter: str | None = None

    def velocity(self, noisy: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        """The velocity at (noisy, sigma): float32. Raises UsageError for more than it has positions for."""
        self.check_sides(noisy.shape[2:])
        self.play()
        with torch.autocast(noisy.device.type, self.dtype, enabled=self.dtype != torch.float32):
            found = self.transformer(
                hidden_states=noisy.float(),
                # In bfloat16 937.5 would be 936.
                timestep=sigma.to(noisy.device, torch.float32) * TIMESTEPS,
                encoder_hidden_states=conditions.text.to(noisy.device, self.dtype),
                control_hidden_states=conditions.context.to(noisy.device, self.dtype),
                return_dict=False,
            )[0]
        return torch.as_tensor(found).float()

    def clean(self, noisy: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        """The clean latent that it sees in `noisy`: float32."""
        return clean_of(self.velocity(noisy, sigma, conditions), noisy, sigma)

    def seen(self, noisy: Tensor, sigma: Tensor, conditions: Conditions) -> tuple[Tensor, list[Tensor]]:
        """The velocity, and what a discriminator judges by: the tokens [B, N, dim] after some blocks (`depths`)."""
        found: dict[int, Tensor] = {}

        def keep(at: int) -> Any:
            def hook(_block: nn.Module, _given: Any, made: Tensor) -> None:
                found[at] = made

            return hook

        blocks = self.transformer.blocks
        hooks = [blocks[at].register_forward_hook(keep(at)) for at in depths(len(blocks))]
        try:
            velocity = self.velocity(noisy, sigma, conditions)
        finally:
            for hook in hooks:
                hook.remove()
        return velocity, [found[at] for at in depths(len(blocks))]

    def play(self) -> None:
        """Make its adapter the one that counts. What a backward pass computes again must be in the part that it was in:
        call this before."""
        if not getattr(self.transformer, "peft_config", None):
            return
        if self.adapter is None:
            self.transformer.disable_adapters()
        else:
            self.transformer.enable_adapters()
            self.transformer.set_adapter(self.adapter)

    def check_sides(self, sides: Sequence[int]) -> None:
        """Raises UsageError where a latent's sides [R + T', h, w] reach beyond the network's positions."""
        inner = self.transformer.config
        check_positions(inner.rope_max_seq_len, inner.patch_size, sides)

    def changed(self) -> None:
        """Say that its weights were changed by hand: what FSDP still has gathered of them, after a forward pass without
        a backward one, is as they were."""
        if isinstance(self.transformer, FSDPModule):
            self.transformer.reshard()

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What of it is trained, by name: its adapter's weights, or all."""
        for name, parameter in self.transformer.named_parameters():
            if self.adapter is None or f".{self.adapter}." in name:
                yield name, parameter


def check_positions(most: int, patch: Sequence[int], sides: Sequence[int]) -> None:
    """Raises UsageError where a latent's sides [R + T', h, w] in patches reach beyond so many positions."""
    patches = [side // size for side, size in zip(sides, patch, strict=True)]
    if max(patches) > most:
        raise UsageError(
            f"the network has {most} positions a side (rope_max_seq_len), and a clip with its references takes "
            f"{patches[0]} x {patches[1]} x {patches[2]}: shorter or smaller clips, or fewer references"
        )


def depths(blocks: int) -> list[int]:
    """The blocks after which features are taken, of so many: at half, three quarters and the end."""
    return sorted({math.ceil(share * blocks) - 1 for share in _DEPTHS})


def load(folder: Path, dtype: torch.dtype) -> Any:
    """The VACE transformer of a model in diffusers' layout, on the CPU, in evaluation mode, nothing of it to be
    trained. Raises as `loading.network`."""
    from diffusers import WanVACETransformer3DModel

    found = loading.network(folder, TRANSFORMER, WanVACETransformer3DModel, torch_dtype=dtype)
    return _exact(found).eval().requires_grad_(False)


def adapted(transformer: Any, rank: int, names: Sequence[str] = (STUDENT, FAKE)) -> Any:
    """The same transformer with a LoRA of this rank under each name, in float32; at first they change nothing.

    The scale is 1 at every rank (alpha = rank). [LoRA, arXiv:2106.09685]
    """
    from peft import LoraConfig

    warnings.filterwarnings("ignore", message="Already found a `peft_config`")
    for name in names:
        transformer.add_adapter(
            LoraConfig(r=rank, lora_alpha=rank, target_modules=LORA_TARGETS, init_lora_weights=True), adapter_name=name
        )
    for name, parameter in transformer.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    return transformer


def time_embedder(transformer: Any) -> nn.Module:
    """The part of a transformer that computes in float32, whatever the rest does."""
    found: nn.Module = transformer.condition_embedder.time_embedder
    return found


def _exact(transformer: Any) -> Any:
    """The same transformer whose time embedder is left alone by autocast: diffusers keeps it in float32, and computes
    without autocast."""
    embedder = time_embedder(transformer)
    kind: Any = type(embedder)

    class Exact(kind):  # type: ignore[misc]
        def forward(self, sample: Tensor, *more: Any) -> Tensor:
            with torch.autocast(sample.device.type, enabled=False):
                return torch.as_tensor(super().forward(sample, *more))

    # A class, as wrapping the method would tie a copy of the network to the weights that it was copied from.
    embedder.__class__ = Exact
    return transformer


def scratch(folder: Path) -> Any:
    """A transformer of a folder's shape with random weights, float32, whose VACE branch at first adds nothing.

    Raises MissingWeights where the folder has no configuration of one, or another network's.
    """
    from diffusers import WanVACETransformer3DModel

    told = model_folder.configuration(folder, TRANSFORMER)
    made = loading.tried(folder, TRANSFORMER, lambda: WanVACETransformer3DModel.from_config(told))
    return _exact(silenced(made)).eval().requires_grad_(False)


def narrowed(transformer: Any, dtype: torch.dtype) -> Any:
    """The same transformer with weights of a dtype, but for those that diffusers keeps in float32 when it loads one."""
    exact = {*(transformer._keep_in_fp32_modules or ())}
    for name, parameter in transformer.named_parameters():
        if exact.isdisjoint(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return transformer


def silenced(transformer: Any) -> Any:
    """The same transformer with a VACE branch that at first adds nothing, as VACE begins its own."""
    for block in transformer.vace_blocks:
        nn.init.zeros_(block.proj_out.weight)
        nn.init.zeros_(block.proj_out.bias)
    return transformer
