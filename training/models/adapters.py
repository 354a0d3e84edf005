"""Adapter (LoRA) files of a VACE transformer, under diffusers' names and under those of the original release, which
ComfyUI, LightX2V and DiffSynth read.

Some files scale the adapter: by an `alpha` for each layer, or by peft's settings in the header. Not every program reads
these, so files written here contain matrices that are already scaled.

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
    """The naming scheme of a file's layers."""

    ORIGINAL = "original"
    DIFFUSERS = "diffusers"


@dataclass(frozen=True, slots=True)
class Adapter:
    """The adapter of one layer: adds `up @ down` to its weight, and `bias`, if given, to its bias."""

    down: Tensor
    up: Tensor
    bias: Tensor | None = None

    @property
    def rank(self) -> int:
        """The rank of the matrices."""
        return int(self.down.shape[0])


# The end of a tensor's name gives its role in the layer. Some tools put the name of an adapter before `weight`.
_PARTS = {
    "down": re.compile(r"\.lora(_A|_down|\.down)(\.[^.]+)?\.weight$"),
    "up": re.compile(r"\.lora(_B|_up|\.up)(\.[^.]+)?\.weight$"),
    # peft scales the bias of B like B; a difference is not scaled.
    "scaled_bias": re.compile(r"\.lora(_B|_up)(\.[^.]+)?\.bias$"),
    "bias": re.compile(r"\.diff_b$"),
    "difference": re.compile(r"\.diff$"),
    "alpha": re.compile(r"\.alpha$"),
}
_MATRICES = ("down", "up")
# Prefixes of every name by tool: diffusers, ComfyUI and compatible ones, peft, DiffSynth, kohya.
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
    """peft's settings that determine an adapter's scale."""

    lora_alpha: float
    alpha_pattern: dict[re.Pattern[str], float] = {}
    use_rslora: bool = False

    def alpha(self, layer: str) -> float:
        """The alpha of a layer: of the first pattern matching its name's end. [peft.utils.other.get_pattern_key]"""
        for pattern, alpha in self.alpha_pattern.items():
            if re.fullmatch(rf"(.*\.)?({pattern.pattern})", layer):
                return alpha
        return self.lora_alpha


def has_adapters(names: Iterable[str]) -> bool:
    """Whether tensors of these names are adapters, rather than full weights."""
    return any(part in _MATRICES for part in map(_identify_part, names))


def read(weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[dict[str, Adapter], Side]:
    """The adapters in a file, already scaled, by diffusers' names of their layers, and the file's naming scheme.

    Raises UsageError for tensors that are not a complete adapter of a layer of a VACE transformer.
    """
    parts = _group_by_layer(weights)
    side = _detect_side(parts, weights)
    settings = _read_settings(metadata)
    layers: dict[str, Adapter] = {}
    for layer, tensors in parts.items():
        adapter = _build_adapter(layer, tensors, settings)
        if adapter is not None:
            layers[layer if side is Side.DIFFUSERS else str(weight_names.layer_to_diffusers(layer))] = adapter
    if not layers:
        raise UsageError("it holds no complete adapter")
    return layers, side


def to_diffusers(layers: Mapping[str, Adapter]) -> dict[str, Tensor]:
    """The tensors of a file that `WanVACEPipeline.load_lora_weights` reads; see `diffusers_metadata`."""
    return _tensors({f"{_DIFFUSERS}{layer}": adapter for layer, adapter in layers.items()}, "lora_B.bias")


def to_original(layers: Mapping[str, Adapter]) -> dict[str, Tensor]:
    """The tensors of a file for programs that use the original release's layer names."""
    return _tensors(
        {f"{_ORIGINAL}{weight_names.layer_to_original(name)}": adapter for name, adapter in layers.items()}, "diff_b"
    )


def diffusers_metadata(layers: Mapping[str, Adapter]) -> dict[str, str]:
    """The metadata of a file for diffusers: if ranks differ, it states that each layer's scale is 1."""
    ranks = {layer: adapter.rank for layer, adapter in layers.items()}
    ((usual, _),) = Counter(ranks.values()).most_common(1)
    # ^ anchors the name: without it `proj_out` would also match that of every block.
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


def _identify_part(name: str) -> str | None:
    """The role of a tensor in its layer; None if it has none."""
    return next((part for part, ending in _PARTS.items() if ending.search(name)), None)


def _group_by_layer(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Layer, as the file names it but without a prefix -> part -> tensor."""
    layers: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in weights.items():
        part = _identify_part(name)
        if part is None:
            raise UsageError(f"{name!r} does not belong to a LoRA")
        layer = _strip_prefix(_PARTS[part].sub("", name))
        if part in layers[layer]:
            raise UsageError(f"{name!r} appears twice, under different names")
        layers[layer][part] = tensor
    return layers


def _strip_prefix(layer: str) -> str:
    if layer.startswith(_FLAT):
        return weight_names.unflatten_layer(layer.removeprefix(_FLAT)) or layer
    prefix = next((prefix for prefix in _PREFIXES if layer.startswith(prefix)), "")
    return layer.removeprefix(prefix)


def _detect_side(layers: Iterable[str], names: Iterable[str]) -> Side:
    """The naming scheme that fits all layers."""
    converters = {Side.ORIGINAL: weight_names.layer_to_diffusers, Side.DIFFUSERS: weight_names.layer_to_original}
    unknown = {side: [name for name in layers if convert(name) is None] for side, convert in converters.items()}
    fitting = [side for side in Side if not unknown[side]]
    if not fitting:
        smallest = min(unknown.values(), key=len)
        raise UsageError(f"{smallest[0]!r} is not a layer of a VACE transformer")
    # Some layers have the same name on both sides: then the prefix decides.
    return fitting[0] if len(fitting) == 1 or not any(name.startswith(_DIFFUSERS) for name in names) else fitting[1]


def _build_adapter(layer: str, parts: Mapping[str, Tensor], settings: _Settings | None) -> Adapter | None:
    """The adapter from a layer's tensors; None if they add nothing."""
    if "difference" in parts and bool(parts["difference"].any()):
        raise UsageError(f"{layer!r} has a full difference (.diff), which a LoRA cannot hold")
    missing = [part for part in _MATRICES if part not in parts]
    if missing == [*_MATRICES]:
        if any(bool(parts[bias].any()) for bias in ("bias", "scaled_bias") if bias in parts):
            raise UsageError(f"{layer!r} has only a bias, which a LoRA cannot hold")
        return None
    if missing:
        raise UsageError(f"{layer!r} lacks the matrix {missing[0]}")
    down, up = parts["down"], parts["up"]
    if down.ndim < 2 or up.ndim < 2 or down.shape[0] != up.shape[1] or not down.shape[0]:
        raise UsageError(f"{layer!r} has matrices of {[*down.shape]} and {[*up.shape]}, which do not fit together")
    scale = _find_scale(layer, int(down.shape[0]), parts.get("alpha"), settings)
    if not math.isfinite(scale):
        raise UsageError(f"{layer!r} is scaled by {scale}")
    down_by, up_by = _split_scale(scale)
    bias = parts.get("bias")
    if bias is None and "scaled_bias" in parts:
        bias = _rescale(parts["scaled_bias"], scale)
    return Adapter(_rescale(down, down_by), _rescale(up, up_by), bias)


def _find_scale(layer: str, rank: int, alpha: Tensor | None, settings: _Settings | None) -> float:
    """The factor of `up @ down`: alpha / rank, or 1 without an alpha."""
    if alpha is not None:
        if alpha.numel() != 1:
            raise UsageError(f"{layer!r} has an alpha of {[*alpha.shape]}, and one number is needed")
        return float(alpha) / rank
    return 1.0 if settings is None else settings.alpha(layer) / (math.sqrt(rank) if settings.use_rslora else rank)


def _read_settings(metadata: Mapping[str, str]) -> _Settings | None:
    """The settings of peft in a header, if any."""
    if _SETTINGS not in metadata:
        return None
    try:
        values = dict(json.loads(metadata[_SETTINGS]))
        return _Settings.model_validate({name.removeprefix(_DIFFUSERS): value for name, value in values.items()})
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"its header's {_SETTINGS} cannot be read ({' '.join(str(error).split())})") from error


def _split_scale(scale: float) -> tuple[float, float]:
    """A scale as two factors, for down and up, as in diffusers: so half-precision matrices do not underflow."""
    down, up = scale, 1.0
    while 0 < abs(down) * 2 < up:
        down, up = down * 2, up / 2
    return down, up


def _rescale(tensor: Tensor, factor: float) -> Tensor:
    return tensor if factor == 1 else (tensor.float() * factor).to(tensor.dtype)
