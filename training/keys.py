"""The names of a VACE transformer's weights: those of the original release, and those of diffusers, both ways.

[VACE: vace/models/wan/modules/model.py, Apache-2.0; diffusers: scripts/convert_wan_to_diffusers.py, Apache-2.0]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import RunError, UsageError

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
# What other tools save before every name.
_PREFIX = "model.diffusion_model."


def to_diffusers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the original release under diffusers' names. Raises UsageError for a name that is none of theirs."""
    plain = {name.removeprefix(_PREFIX): tensor for name, tensor in weights.items()}
    return {_renamed(name, _OUTSIDE, _INSIDE): tensor for name, tensor in plain.items()}


def to_original(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of diffusers under the original release's names. Raises UsageError for a name that is none of theirs."""
    outside, inside = ({theirs: own for own, theirs in table.items()} for table in (_OUTSIDE, _INSIDE))
    return {_renamed(name, outside, inside): tensor for name, tensor in weights.items()}


def original(names: Iterable[str]) -> bool:
    """Whether names are those of the original release."""
    return any(name.removeprefix(_PREFIX).startswith(("text_embedding.", "head.")) for name in names)


def convert(files: Sequence[Path], out: Path) -> None:
    """Write the weights in some safetensors files into one, under the names of the other side.

    Raises UsageError where a file cannot be read, is of another network, or `out` exists; RunError where that cannot be
    written.
    """
    if out.exists():
        raise UsageError(f"{out} exists already: choose another file")
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            more = load_file(file)
        except (OSError, SafetensorError) as error:
            raise UsageError(f"{file} cannot be read as safetensors: {error}") from error
        if not more:
            raise UsageError(f"{file} holds no weights")
        if twice := sorted({*more} & {*weights}):
            raise UsageError(f"{file} holds {twice[0]}, as a file before it does")
        weights |= more
    try:
        renamed = to_diffusers(weights) if original(weights) else to_original(weights)
    except UsageError as error:
        raise UsageError(f"{', '.join(map(str, files))}: {error}") from error
    half = out.with_name(f".{out.name}.half")
    try:
        # What libraries ask before they load a file.
        half.touch()
        mode = half.stat().st_mode
        save_file(renamed, half, {"format": "pt"})
        # safetensors writes files that nobody else can read.
        half.chmod(mode)
        half.rename(out)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{out} cannot be written: {error}") from error
    finally:
        half.unlink(missing_ok=True)


def _renamed(name: str, outside: Mapping[str, str], inside: Mapping[str, str]) -> str:
    before, table, rest = "", outside, name
    kind, _, within = name.partition(".")
    if kind in _BLOCKS:
        number, _, rest = within.partition(".")
        before, table = f"{kind}.{number}.", inside
    # A weight or bias of a layer, or a parameter of its own.
    layer, _, ending = rest.rpartition(".")
    if rest in table:
        return before + table[rest]
    if layer in table and ending in ("weight", "bias"):
        return f"{before}{table[layer]}.{ending}"
    raise UsageError(f"{name!r} is no weight of a VACE transformer")
