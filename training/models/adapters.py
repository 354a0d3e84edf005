"""Adapters (LoRA) to a VACE transformer as files hold them: under diffusers' names and under those of the original
release, which ComfyUI, LightX2V and DiffSynth read.

Some files scale what they add: by an `alpha` beside each layer, or by settings of peft in the header. Not every reader
looks for either, so what is written here is scaled already.

[diffusers: loaders/lora_conversion_utils.py, Apache-2.0]
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from pydantic import BaseModel
from torch import Tensor

from pipeline.errors import UsageError
from training.models import weight_names


class Side(Enum):
    """The names under which a file holds its layers."""

    ORIGINAL = "original"
    DIFFUSERS = "diffusers"


@dataclass(frozen=True, slots=True)
class Adapter:
    """What is added to one layer: `up @ down` to its weight, and `bias`, if there is one, to its bias."""

    down: Tensor
    up: Tensor
    bias: Tensor | None = None

    @property
    def rank(self) -> int:
        """The rank of what it adds."""
        return int(self.down.shape[0])


# The end of a tensor's name says what it is to its layer. Some tools put the name of an adapter before `weight`.
_PARTS = {
    "down": re.compile(r"\.lora(_A|_down|\.down)(\.[^.]+)?\.weight$"),
    "up": re.compile(r"\.lora(_B|_up|\.up)(\.[^.]+)?\.weight$"),
    # peft scales the bias of B as it scales B; a difference counts as it is.
    "scaled_bias": re.compile(r"\.lora(_B|_up)(\.[^.]+)?\.bias$"),
    "bias": re.compile(r"\.diff_b$"),
    "difference": re.compile(r"\.diff$"),
    "alpha": re.compile(r"\.alpha$"),
}
_MATRICES = ("down", "up")
# What tools save before every name: diffusers, ComfyUI and those who follow it, peft, DiffSynth, kohya.
_DIFFUSERS, _ORIGINAL, _FLAT = "transformer.", "diffusion_model.", "lora_unet_"
_PREFIXES = (
    _DIFFUSERS,
    _ORIGINAL,
    f"model.{_ORIGINAL}",
    f"base_model.model.{_ORIGINAL}",
    "base_model.model.",
    "pipe.dit.",
)
# [diffusers.loaders.lora_base.LORA_ADAPTER_METADATA_KEY]
_SETTINGS = "lora_adapter_metadata"


class _Settings(BaseModel):
    """What peft's settings say of an adapter's scale."""

    lora_alpha: float
    alpha_pattern: dict[re.Pattern[str], float] = {}
    use_rslora: bool = False

    def alpha(self, layer: str) -> float:
        """The alpha of a layer: of the first pattern that is the end of its name. [peft.utils.other.get_pattern_key]"""
        for pattern, alpha in self.alpha_pattern.items():
            if re.fullmatch(rf"(.*\.)?({pattern.pattern})", layer):
                return alpha
        return self.lora_alpha


def present(names: Iterable[str]) -> bool:
    """Whether tensors of these names are adapters, rather than whole weights."""
    return any(part in _MATRICES for part in map(_part, names))


def read(weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[dict[str, Adapter], Side]:
    """The adapters in a file, with its scale in them, by diffusers' names of their layers, and the names it has.

    Raises UsageError for what is not an adapter to a layer of a VACE transformer, or not all of one.
    """
    parts = _by_layer(weights)
    side = _side(parts, weights)
    settings = _settings(metadata)
    layers: dict[str, Adapter] = {}
    for layer, tensors in parts.items():
        adapter = _adapter(layer, tensors, settings)
        if adapter is not None:
            layers[layer if side is Side.DIFFUSERS else str(weight_names.layer_to_diffusers(layer))] = adapter
    if not layers:
        raise UsageError("it holds no whole adapter")
    return layers, side


def for_diffusers(layers: Mapping[str, Adapter]) -> dict[str, Tensor]:
    """The tensors of a file that `WanVACEPipeline.load_lora_weights` reads; see `diffusers_metadata`."""
    return _tensors({f"{_DIFFUSERS}{layer}": adapter for layer, adapter in layers.items()}, "lora_B.bias")


def for_original(layers: Mapping[str, Adapter]) -> dict[str, Tensor]:
    """The tensors of a file for programs that name layers as the original release does."""
    return _tensors(
        {f"{_ORIGINAL}{weight_names.layer_to_original(name)}": adapter for name, adapter in layers.items()}, "diff_b"
    )


def diffusers_metadata(layers: Mapping[str, Adapter]) -> dict[str, str]:
    """What the header of a file for diffusers has to say: where ranks differ, that each layer's scale is 1."""
    ranks = {layer: adapter.rank for layer, adapter in layers.items()}
    ((usual, _),) = Counter(ranks.values()).most_common(1)
    # ^ is the beginning: else `proj_out` would be that of every block besides.
    unusual = {f"^{layer}": rank for layer, rank in ranks.items() if rank != usual}
    if not unusual:
        return {}
    settings = {
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": unusual,
        "alpha_pattern": unusual,
        "target_modules": sorted(layers),
        "lora_bias": any(adapter.bias is not None for adapter in layers.values()),
    }
    return {_SETTINGS: json.dumps({f"{_DIFFUSERS}{name}": value for name, value in settings.items()})}


def _tensors(layers: Mapping[str, Adapter], bias: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for layer, adapter in layers.items():
        tensors |= {f"{layer}.lora_A.weight": adapter.down, f"{layer}.lora_B.weight": adapter.up}
        if adapter.bias is not None:
            tensors[f"{layer}.{bias}"] = adapter.bias
    return tensors


def _part(name: str) -> str | None:
    """What a tensor is to its layer."""
    return next((part for part, ending in _PARTS.items() if ending.search(name)), None)


def _by_layer(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Layer, as the file names it but without a prefix -> part -> tensor."""
    layers: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in weights.items():
        part = _part(name)
        if part is None:
            raise UsageError(f"{name!r} is not of a LoRA")
        layer = _without_prefix(_PARTS[part].sub("", name))
        if part in layers[layer]:
            raise UsageError(f"{name!r} is there twice, under another name")
        layers[layer][part] = tensor
    return layers


def _without_prefix(layer: str) -> str:
    if layer.startswith(_FLAT):
        return weight_names.dotted(layer.removeprefix(_FLAT)) or layer
    prefix = next((prefix for prefix in _PREFIXES if layer.startswith(prefix)), "")
    return layer.removeprefix(prefix)


def _side(layers: Iterable[str], names: Iterable[str]) -> Side:
    """Whose names those of all layers are."""
    unknown = {Side.ORIGINAL: weight_names.layer_to_diffusers, Side.DIFFUSERS: weight_names.layer_to_original}
    strange = {side: [name for name in layers if other(name) is None] for side, other in unknown.items()}
    fitting = [side for side in Side if not strange[side]]
    if not fitting:
        fewest = min(strange.values(), key=len)
        raise UsageError(f"{fewest[0]!r} is not a layer of a VACE transformer")
    # Some layers have one name on both sides: then the prefix says it.
    return fitting[0] if len(fitting) == 1 or not any(name.startswith(_DIFFUSERS) for name in names) else fitting[1]


def _adapter(layer: str, parts: Mapping[str, Tensor], settings: _Settings | None) -> Adapter | None:
    """The adapter that tensors of a layer make; None where they add nothing."""
    if "difference" in parts and bool(parts["difference"].any()):
        raise UsageError(f"{layer!r} has a whole difference (.diff), which a LoRA cannot hold")
    lacking = [part for part in _MATRICES if part not in parts]
    if lacking == [*_MATRICES]:
        if any(bool(parts[bias].any()) for bias in ("bias", "scaled_bias") if bias in parts):
            raise UsageError(f"{layer!r} has a bias alone, which a LoRA cannot hold")
        return None
    if lacking:
        raise UsageError(f"{layer!r} lacks the matrix {lacking[0]}")
    down, up = parts["down"], parts["up"]
    if down.ndim < 2 or up.ndim < 2 or down.shape[0] != up.shape[1] or not down.shape[0]:
        raise UsageError(f"{layer!r} has matrices of {[*down.shape]} and {[*up.shape]}, which do not fit together")
    scale = _scale(layer, int(down.shape[0]), parts.get("alpha"), settings)
    if not math.isfinite(scale):
        raise UsageError(f"{layer!r} is scaled by {scale}")
    down_by, up_by = _halves(scale)
    bias = parts.get("bias")
    if bias is None and "scaled_bias" in parts:
        bias = _scaled(parts["scaled_bias"], scale)
    return Adapter(_scaled(down, down_by), _scaled(up, up_by), bias)


def _scale(layer: str, rank: int, alpha: Tensor | None, settings: _Settings | None) -> float:
    """What `up @ down` is multiplied by: alpha / rank; without an alpha 1."""
    if alpha is not None:
        if alpha.numel() != 1:
            raise UsageError(f"{layer!r} has an alpha of {[*alpha.shape]}, and one number is needed")
        return float(alpha) / rank
    return 1.0 if settings is None else settings.alpha(layer) / (math.sqrt(rank) if settings.use_rslora else rank)


def _settings(metadata: Mapping[str, str]) -> _Settings | None:
    """The settings of peft in a header, if there are any."""
    if _SETTINGS not in metadata:
        return None
    try:
        values = dict(json.loads(metadata[_SETTINGS]))
        return _Settings.model_validate({name.removeprefix(_DIFFUSERS): value for name, value in values.items()})
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"its header's {_SETTINGS} cannot be read ({' '.join(str(error).split())})") from error


def _halves(scale: float) -> tuple[float, float]:
    """A scale as two factors, for down and up: as diffusers does it, so that no half-precision matrix gets tiny."""
    down, up = scale, 1.0
    while 0 < abs(down) * 2 < up:
        down, up = down * 2, up / 2
    return down, up


def _scaled(tensor: Tensor, factor: float) -> Tensor:
    return tensor if factor == 1 else (tensor.float() * factor).to(tensor.dtype)
