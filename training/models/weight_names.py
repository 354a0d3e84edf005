"""Conversion of a VACE transformer's weight names between the original release and diffusers.

diffusers has the way to its own names (`convert_wan_transformer_to_diffusers`, not public), by replacing parts of
names. Here one table serves both ways, whole files and single layers of adapters, and an unknown name is an error.

[VACE: vace/models/wan/modules/model.py, Apache-2.0; diffusers: scripts/convert_wan_to_diffusers.py, Apache-2.0]
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from pipeline.errors import UsageError

# Original -> diffusers: names outside of blocks, and within one (only VACE's blocks have the last two).
_OUTER_NAMES = {
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
_BLOCK_NAMES = {
    **{f"self_attn.{original}": f"attn1.{diffusers}" for original, diffusers in _ATTENTION.items()},
    **{f"cross_attn.{original}": f"attn2.{diffusers}" for original, diffusers in _ATTENTION.items()},
    # The norm before cross-attention, the only one with weights: the third in the original, the second in diffusers.
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation": "scale_shift_table",
    "before_proj": "proj_in",
    "after_proj": "proj_out",
}
_BLOCKS = ("blocks", "vace_blocks")
# Kohya's names replace every dot by _, also those around block numbers.
_FLAT_BLOCK = re.compile(rf"(?P<kind>{'|'.join(_BLOCKS)})_(?P<number>\d+)_(?P<layer>.+)")
_DOTTED = {name.replace(".", "_"): name for name in (*_OUTER_NAMES, *_BLOCK_NAMES)}
# A prefix that other tools add to every name.
_PREFIX = "model.diffusion_model."


def to_diffusers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the original release under diffusers' names. Raises UsageError for an unknown name."""
    plain = {name.removeprefix(_PREFIX): tensor for name, tensor in weights.items()}
    return {_rename_parameter(name, _OUTER_NAMES, _BLOCK_NAMES): tensor for name, tensor in plain.items()}


def to_original(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of diffusers under the original release's names. Raises UsageError for an unknown name."""
    outer_names, block_names = _invert_tables()
    return {_rename_parameter(name, outer_names, block_names): tensor for name, tensor in weights.items()}


def is_original(names: Iterable[str]) -> bool:
    """Whether names are those of the original release."""
    return any(name.removeprefix(_PREFIX).startswith(("text_embedding.", "head.")) for name in names)


def layer_to_diffusers(name: str) -> str | None:
    """Diffusers' name of a layer of the original release; None for an unknown name."""
    return _rename_layer(name, _OUTER_NAMES, _BLOCK_NAMES)


def layer_to_original(name: str) -> str | None:
    """The original release's name of a layer of diffusers; None for an unknown name."""
    return _rename_layer(name, *_invert_tables())


def unflatten_layer(flat: str) -> str | None:
    """An original layer's name from kohya's form of it, with _ for every dot."""
    block = _FLAT_BLOCK.fullmatch(flat)
    layer = _DOTTED.get(block["layer"] if block else flat)
    return f"{block['kind']}.{block['number']}.{layer}" if block and layer else layer


def _invert_tables() -> tuple[dict[str, str], dict[str, str]]:
    """The tables from diffusers' names to original ones, outside of blocks and within."""
    outer_names, block_names = (
        {diffusers: original for original, diffusers in table.items()} for table in (_OUTER_NAMES, _BLOCK_NAMES)
    )
    return outer_names, block_names


def _rename_layer(name: str, outer_names: Mapping[str, str], block_names: Mapping[str, str]) -> str | None:
    """The name of a layer or a bare parameter on the other side; None for an unknown name."""
    kind, _, path = name.partition(".")
    if kind not in _BLOCKS:
        return outer_names.get(name)
    number, _, layer = path.partition(".")
    return f"{kind}.{number}.{block_names[layer]}" if layer in block_names else None


def _rename_parameter(name: str, outer_names: Mapping[str, str], block_names: Mapping[str, str]) -> str:
    # A bare parameter, or the weight or bias of a layer.
    if parameter := _rename_layer(name, outer_names, block_names):
        return parameter
    layer, _, ending = name.rpartition(".")
    if ending in ("weight", "bias") and (renamed := _rename_layer(layer, outer_names, block_names)):
        return f"{renamed}.{ending}"
    raise UsageError(f"{name!r} is not a weight of a VACE transformer")
