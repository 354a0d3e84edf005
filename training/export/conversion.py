"""Conversion of weight and adapter files between the original VACE names and diffusers' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.errors import RunError, UsageError
from pipeline.storage.atomic import new_file, unfinished_path
from training.models import adapters, weight_names


def convert(files: Sequence[Path], out: Path) -> None:
    """Write the weights in safetensors files, or the adapters in one, into a file under the names of the other side.

    Raises UsageError if a file cannot be read, is of another network, or `out` exists; RunError if `out` cannot be
    written.
    """
    if out.exists():
        raise UsageError(f"{out} exists already: choose another file")
    weights: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for file in files:
        tensors, header = _read(file)
        if not tensors:
            raise UsageError(f"{file} holds no weights")
        if duplicates := sorted({*tensors} & {*weights}):
            raise UsageError(f"{file} holds {duplicates[0]}, which an earlier file holds too")
        weights |= tensors
        metadata |= header
    if adapters.has_adapters(weights) and len(files) > 1:
        raise UsageError("adapters are converted one file at a time")
    try:
        renamed, header = _rename(weights, metadata)
    except UsageError as error:
        raise UsageError(f"{', '.join(map(str, files))}: {error}") from error
    _write(out, renamed, header)


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file, and its metadata."""
    try:
        with safe_open(file, "pt") as opened:
            # It cannot be iterated over: only `keys` lists its names.
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{file} cannot be read as safetensors: {error}") from error


def _rename(weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    # Libraries require this before they load a file.
    header = {"format": "pt"}
    if not adapters.has_adapters(weights):
        return weight_names.to_diffusers(weights) if weight_names.is_original(weights) else weight_names.to_original(
            weights
        ), header
    layers, side = adapters.read(weights, metadata)
    if side is adapters.Side.DIFFUSERS:
        return adapters.to_original(layers), header
    return adapters.to_diffusers(layers), header | adapters.diffusers_metadata(layers)


def _write(out: Path, weights: Mapping[str, Tensor], header: dict[str, str]) -> None:
    try:
        with new_file(out, unfinished_path(out)) as unfinished:
            unfinished.touch()
            mode = unfinished.stat().st_mode
            save_file(dict(weights), unfinished, header)
            # safetensors makes files readable by their owner only.
            unfinished.chmod(mode)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{out} cannot be written: {error}") from error
