"""The names of a VACE transformer's weights: those of the original release, and those of diffusers, both ways.

[VACE: vace/models/wan/modules/model.py, Apache-2.0; diffusers: scripts/convert_wan_to_diffusers.py, Apache-2.0]
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from pipeline.errors import UsageError

# Original -> diffusers. Outside of blocks, and within one (VACE's have the last two besides).
_OUTSIDE = {
    "patch_embedding": "patch_embedding",
    "vace_patch_embedding": "vace_patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}
_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_INSIDE = {
    **{f"self_attn.{own}": f"attn1.{theirs}" for own, theirs in _ATTENTION.items()},
    **{f"cross_attn.{own}": f"attn2.{theirs}" for own, theirs in _ATTENTION.items()},
    # The norm before cross-attention, the only one with weights, is the third there and the second here.
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation": "scale_shift_table",
    "before_proj": "proj_in",
    "after_proj": "proj_out",
}
_BLOCKS = ("blocks", "vace_blocks")
# Kohya's names have _ for every dot, the blocks' too.
_FLAT_BLOCK = re.compile(rf"(?P<kind>{'|'.join(_BLOCKS)})_(?P<number>\d+)_(?P<rest>.+)")
_DOTTED = {name.replace(".", "_"): name for name in (*_OUTSIDE, *_INSIDE)}
# What other tools save before every name.
_PREFIX = "model.diffusion_model."


def to_diffusers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the original release under diffusers' names. Raises UsageError for a name that is none of theirs."""
    plain = {name.removeprefix(_PREFIX): tensor for name, tensor in weights.items()}
    return {_renamed(name, _OUTSIDE, _INSIDE): tensor for name, tensor in plain.items()}


def to_original(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of diffusers under the original release's names. Raises UsageError for a name that is none of theirs."""
    outside, inside = _inverted()
    return {_renamed(name, outside, inside): tensor for name, tensor in weights.items()}


def original(names: Iterable[str]) -> bool:
    """Whether names are those of the original release."""
    return any(name.removeprefix(_PREFIX).startswith(("text_embedding.", "head.")) for name in names)


def layer_to_diffusers(name: str) -> str | None:
    """Diffusers' name of a layer of the original release; None where the name is not one of theirs."""
    return _layer(name, _OUTSIDE, _INSIDE)


def layer_to_original(name: str) -> str | None:
    """The original release's name of a layer of diffusers; None where the name is not one of theirs."""
    return _layer(name, *_inverted())


def dotted(flat: str) -> str | None:
    """An original layer's name from the one that kohya's tools give it, with _ for every dot."""
    block = _FLAT_BLOCK.fullmatch(flat)
    rest = _DOTTED.get(block["rest"] if block else flat)
    return f"{block['kind']}.{block['number']}.{rest}" if block and rest else rest


def _inverted() -> tuple[dict[str, str], dict[str, str]]:
    """The tables of diffusers' names outside of blocks and within."""
    outside, inside = ({theirs: own for own, theirs in table.items()} for table in (_OUTSIDE, _INSIDE))
    return outside, inside


def _layer(name: str, outside: Mapping[str, str], inside: Mapping[str, str]) -> str | None:
    """A layer's, or parameter's, name on the other side."""
    kind, _, within = name.partition(".")
    if kind not in _BLOCKS:
        return outside.get(name)
    number, _, rest = within.partition(".")
    return f"{kind}.{number}.{inside[rest]}" if rest in inside else None


def _renamed(name: str, outside: Mapping[str, str], inside: Mapping[str, str]) -> str:
    # A parameter of its own, or the weight or bias of a layer.
    if parameter := _layer(name, outside, inside):
        return parameter
    layer, _, ending = name.rpartition(".")
    if ending in ("weight", "bias") and (renamed := _layer(layer, outside, inside)):
        return f"{renamed}.{ending}"
    raise UsageError(f"{name!r} is no weight of a VACE transformer")
