"""The networks of a run: VACE transformers from a folder in diffusers' layout, and their roles.

In full fine-tuning the student, the fake score and the frozen teacher are separate networks. With LoRA there is one
frozen network: the teacher is the network alone, the student and the fake score are the network with one adapter each.
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
from training.diffusion.flow_matching import clean_from_velocity
from training.diffusion.schedule import TIMESTEPS
from training.models import folder as model_folder
from training.models import loading
from training.models.folder import TRANSFORMER

STUDENT, FAKE = "student", "fake"
# What LoRA adapts: the projections of attention and of the feed-forward, in Wan's blocks and in VACE's.
LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
# The depths of the features for the discriminator, as shares of the blocks.
_DEPTHS = (0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions of B clips: `text` [B, tokens, dim] and `context` [B, 96, R + T', h, w]; see `vcu`."""

    text: Tensor
    context: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the latents under these conditions, [B, 16, R + T', h, w]."""
        batch, _, *sides = self.context.shape
        return batch, 16, *sides

    def with_text(self, text: Tensor) -> Conditions:
        """The same with another text for all clips, [1, tokens, dim]."""
        return Conditions(text.to(self.text).expand(len(self.context), -1, -1), self.context)


@dataclass(frozen=True, slots=True)
class Denoiser:
    """A transformer in one role: it predicts the velocity or the clean latent at a noisy one, and computes in `dtype`.

    `adapter`: the name of its LoRA; None: the network alone. Noisy latents are [B, 16, R + T', h, w], `sigma` is [B].
    """

    transformer: Any
    dtype: torch.dtype
    adapter: str | None = None

    def predict_velocity(self, noisy: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        """The velocity at (noisy, sigma): float32. Raises UsageError for latents beyond its positions."""
        self.check_sides(noisy.shape[2:])
        self.activate_adapter()
        with torch.autocast(noisy.device.type, self.dtype, enabled=self.dtype != torch.float32):
            predicted = self.transformer(
                hidden_states=noisy.float(),
                # float32: bfloat16 would round 937.5 to 936.
                timestep=sigma.to(noisy.device, torch.float32) * TIMESTEPS,
                encoder_hidden_states=conditions.text.to(noisy.device, self.dtype),
                control_hidden_states=conditions.context.to(noisy.device, self.dtype),
                return_dict=False,
            )[0]
        return torch.as_tensor(predicted).float()

    def predict_clean(self, noisy: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        """The clean latent predicted from `noisy`: float32."""
        return clean_from_velocity(self.predict_velocity(noisy, sigma, conditions), noisy, sigma)

    def predict_with_features(
        self, noisy: Tensor, sigma: Tensor, conditions: Conditions
    ) -> tuple[Tensor, list[Tensor]]:
        """The velocity, and features for the discriminator: the tokens [B, N, dim] after each of `feature_depths`."""
        features: dict[int, Tensor] = {}

        def record(depth: int) -> Any:
            def hook(_block: nn.Module, _inputs: Any, tokens: Tensor) -> None:
                features[depth] = tokens

            return hook

        blocks = self.transformer.blocks
        hooks = [blocks[depth].register_forward_hook(record(depth)) for depth in feature_depths(len(blocks))]
        try:
            velocity = self.predict_velocity(noisy, sigma, conditions)
        finally:
            for hook in hooks:
                hook.remove()
        return velocity, [features[depth] for depth in feature_depths(len(blocks))]

    def activate_adapter(self) -> None:
        """Activate this role's adapter. Call this before a backward pass too: activation checkpointing recomputes in
        it, and must use the same role."""
        if not getattr(self.transformer, "peft_config", None):
            return
        if self.adapter is None:
            self.transformer.disable_adapters()
        else:
            self.transformer.enable_adapters()
            self.transformer.set_adapter(self.adapter)

    def check_sides(self, sides: Sequence[int]) -> None:
        """Raises UsageError if a latent's sides [R + T', h, w] exceed the network's positions."""
        config = self.transformer.config
        check_positions(config.rope_max_seq_len, config.patch_size, sides)

    def reshard(self) -> None:
        """Drop the weights that FSDP still holds gathered after a forward pass without a backward one: call this after
        changing weights in place, because they would be stale."""
        if isinstance(self.transformer, FSDPModule):
            self.transformer.reshard()

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trained parameters by name: its adapter's, or all."""
        for name, parameter in self.transformer.named_parameters():
            if self.adapter is None or f".{self.adapter}." in name:
                yield name, parameter


def check_positions(limit: int, patch: Sequence[int], sides: Sequence[int]) -> None:
    """Raises UsageError if a latent's sides [R + T', h, w] in patches exceed `limit` positions."""
    patches = [side // size for side, size in zip(sides, patch, strict=True)]
    if max(patches) > limit:
        raise UsageError(
            f"the network has {limit} positions a side (rope_max_seq_len), and a clip with its references takes "
            f"{patches[0]} x {patches[1]} x {patches[2]}: shorter or smaller clips, or fewer references"
        )


def feature_depths(blocks: int) -> list[int]:
    """The blocks after which features are taken: at half, three quarters and the end of `blocks`."""
    return sorted({math.ceil(share * blocks) - 1 for share in _DEPTHS})


def load(folder: Path, dtype: torch.dtype) -> Any:
    """The VACE transformer of a model in diffusers' layout: on the CPU, in evaluation mode and frozen.

    Raises as `loading.load_network`.
    """
    from diffusers import WanVACETransformer3DModel

    transformer = loading.load_network(folder, TRANSFORMER, WanVACETransformer3DModel, torch_dtype=dtype)
    return _keep_time_embedder_exact(transformer).eval().requires_grad_(False)


def add_adapters(transformer: Any, rank: int, names: Sequence[str] = (STUDENT, FAKE)) -> Any:
    """The same transformer with a LoRA of this rank under each name, in float32; initially they change nothing.

    The scale is 1 at every rank (alpha = rank). [LoRA, arXiv:2106.09685]
    """
    from peft import LoraConfig

    with warnings.catch_warnings():
        # Several adapters are intended.
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        for name in names:
            config = LoraConfig(r=rank, lora_alpha=rank, target_modules=LORA_TARGETS, init_lora_weights=True)
            transformer.add_adapter(config, adapter_name=name)
    for name, parameter in transformer.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    return transformer


def get_time_embedder(transformer: Any) -> nn.Module:
    """The part of a transformer that always computes in float32."""
    embedder: nn.Module = transformer.condition_embedder.time_embedder
    return embedder


def _keep_time_embedder_exact(transformer: Any) -> Any:
    """The same transformer with its time embedder exempt from autocast: diffusers keeps it in float32 and does not use
    autocast."""
    embedder = get_time_embedder(transformer)
    embedder_class: Any = type(embedder)

    class Exact(embedder_class):  # type: ignore[misc]
        def forward(self, sample: Tensor, *args: Any) -> Tensor:
            with torch.autocast(sample.device.type, enabled=False):
                return torch.as_tensor(super().forward(sample, *args))

    # A subclass: a wrapped method would tie a copy of the network to the weights of the original.
    embedder.__class__ = Exact
    return transformer


def init_random(folder: Path) -> Any:
    """A transformer in a folder's shape with random weights, float32, whose VACE branch initially adds nothing.

    Raises MissingWeights if the folder has no configuration of one, or another network's.
    """
    from diffusers import WanVACETransformer3DModel

    config = model_folder.configuration(folder, TRANSFORMER)
    transformer = loading.call_loader(folder, TRANSFORMER, lambda: WanVACETransformer3DModel.from_config(config))
    return _keep_time_embedder_exact(zero_vace_branch(transformer)).eval().requires_grad_(False)


def cast_weights(transformer: Any, dtype: torch.dtype) -> Any:
    """The same transformer with weights in a dtype, except those that diffusers keeps in float32."""
    float32_modules = {*(transformer._keep_in_fp32_modules or ())}
    for name, parameter in transformer.named_parameters():
        if float32_modules.isdisjoint(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return transformer


def zero_vace_branch(transformer: Any) -> Any:
    """The same transformer with a VACE branch that initially adds nothing, as VACE initialises its own."""
    for block in transformer.vace_blocks:
        nn.init.zeros_(block.proj_out.weight)
        nn.init.zeros_(block.proj_out.bias)
    return transformer
