"""Files of a VACE transformer's weights, or of adapters to it, under the names of the other side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.errors import RunError, UsageError
from training.models import adapters, weight_names


def convert(files: Sequence[Path], out: Path) -> None:
    """Write the weights in some safetensors files, or the adapters in one, into a file under the names of the other
    side.

    Raises UsageError where a file cannot be read, is of another network, or `out` exists; RunError where that cannot be
    written.
    """
    if out.exists():
        raise UsageError(f"{out} exists already: choose another file")
    weights: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for file in files:
        more, header = _read(file)
        if not more:
            raise UsageError(f"{file} holds no weights")
        if twice := sorted({*more} & {*weights}):
            raise UsageError(f"{file} holds {twice[0]}, as a file before it does")
        weights |= more
        metadata |= header
    if adapters.present(weights) and len(files) > 1:
        raise UsageError("adapters lie in one file each: convert one at a time")
    try:
        renamed, header = _renamed(weights, metadata)
    except UsageError as error:
        raise UsageError(f"{', '.join(map(str, files))}: {error}") from error
    _write(out, renamed, header)


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file, and what its header says of them."""
    try:
        with safe_open(file, "pt") as opened:
            # It cannot be iterated over: only `keys` lists its names.
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{file} cannot be read as safetensors: {error}") from error


def _renamed(weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    # What libraries ask before they load a file.
    header = {"format": "pt"}
    if not adapters.present(weights):
        return weight_names.to_diffusers(weights) if weight_names.original(weights) else weight_names.to_original(
            weights
        ), header
    layers, side = adapters.read(weights, metadata)
    if side is adapters.Side.DIFFUSERS:
        return adapters.for_original(layers), header
    return adapters.for_diffusers(layers), header | adapters.diffusers_metadata(layers)


def _write(out: Path, weights: Mapping[str, Tensor], header: dict[str, str]) -> None:
    half = out.with_name(f".{out.name}.half")
    try:
        half.touch()
        mode = half.stat().st_mode
        save_file(dict(weights), half, header)
        # safetensors writes files that nobody else can read.
        half.chmod(mode)
        half.rename(out)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{out} cannot be written: {error}") from error
    finally:
        half.unlink(missing_ok=True)
