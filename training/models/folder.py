"""The user's model, in diffusers' layout: its folder or hub id, its weight files and their fingerprints.

    vae/  text_encoder/  tokenizer/  README.md (the model card)

Imports only the standard library and yaml: a run checks the model before it starts anything, and a trainer checks
whether stored latents are of its model.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from annotators.weights import MissingWeights, hash_file

VAE, TEXT_ENCODER, TRANSFORMER = "vae", "text_encoder", "transformer"
# The file names of diffusers and transformers. Only safetensors are read, because they cannot run code.
_WEIGHTS = {
    VAE: "diffusion_pytorch_model.safetensors",
    TEXT_ENCODER: "model.safetensors",
    TRANSFORMER: "diffusion_pytorch_model.safetensors",
}
# The statistics that normalise latents are in the configuration, not in the weights.
_NORMALISED_BY = ("latents_mean", "latents_std")
_ENDINGS = ("safetensors", "json", "model")
_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<commit>[0-9a-f]{40}))?")


def locate(name: str) -> str:
    """The model's name in a form valid on every node: an absolute path, or a hub id with commit (`owner/name@commit`).

    `name`: a folder, or a hub id. Raises as `resolve_folder`.
    """
    path = resolve_folder(name)
    return str(path.resolve()) if Path(name).is_dir() else f"{name.partition('@')[0]}@{path.name}"


def resolve_folder(name: str, extra_parts: Iterable[str] = ()) -> Path:
    """The folder of a model named by a folder or a hub id (with `@commit`), downloaded unless it is in the hub's cache.
    `extra_parts`: parts beyond those that latents need.

    Raises `MissingWeights` if the name is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    match = _HUB_ID.fullmatch(name)
    if match is None:
        raise MissingWeights(f"The model {name!r} is neither a folder here nor a hub id (owner/name).")
    # A dependency of diffusers, which is rarely installed.
    from huggingface_hub import snapshot_download

    patterns = [f"{part}/*.{ending}" for part in (VAE, TEXT_ENCODER, "tokenizer", *extra_parts) for ending in _ENDINGS]
    try:
        snapshot = snapshot_download(match["id"], revision=match["commit"], allow_patterns=[*patterns, "README.md"])
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise MissingWeights(
            f"The model {name!r} is not a folder here, and the hub does not provide it ({reason})."
        ) from error
    return Path(snapshot)


def title(model: str) -> str:
    """A display name for the result of `locate`: a hub id, or a folder's name without its local path."""
    return Path(model).name if Path(model).is_dir() else model


def check(model: Path, parts: Iterable[str] = (VAE, TEXT_ENCODER)) -> None:
    """Raises `MissingWeights` if weights or configuration of a part are absent, without reading the weights."""
    for part in parts:
        configuration(model, part)
        _weight_files(model / part, _WEIGHTS[part])


def configuration(model: Path, part: str) -> dict[str, Any]:
    """The configuration of one part of a model. Raises `MissingWeights` if it is absent or not a JSON object."""
    if not (model / part / "config.json").is_file():
        raise MissingWeights(f"The model in {model} has no {part}/config.json: name one in diffusers' layout.")
    return _read(model / part / "config.json")


def fingerprint(model: Path, part: str) -> str:
    """The sha256 (hex) of what determines the output of one part (`VAE`, `TEXT_ENCODER`, `TRANSFORMER`) of a model: the
    sha256 of its weight files, and from its configuration the statistics of latents, or all of it for a transformer.

    Each file is read once per process, unless it changes. Raises `MissingWeights` if one is absent.
    """
    state = hashlib.sha256()
    for file in _weight_files(model / part, _WEIGHTS[part]):
        state.update(f"{file.name} {hash_file(file)}\n".encode())
    config = configuration(model, part)
    # Names that begin with _ describe the program that saved it.
    names = sorted(name for name in config if name[0] != "_") if part == TRANSFORMER else _NORMALISED_BY
    state.update(json.dumps({name: config.get(name) for name in names}).encode())
    return state.hexdigest()


def fingerprints(model: Path, parts: Iterable[str] = (VAE, TEXT_ENCODER)) -> dict[str, str]:
    """Part -> fingerprint. Raises as `fingerprint`."""
    return {part: fingerprint(model, part) for part in parts}


def licence(model: Path) -> str:
    """The licence in the model card, or 'unknown'."""
    card = model / "README.md"
    text = card.read_text(errors="replace") if card.is_file() else ""
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    try:
        stated = yaml.safe_load(head[1]) if head else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return "unknown"
    name = stated.get("license") if isinstance(stated, dict) else None
    return name if isinstance(name, str) else "unknown"


def _weight_files(part: Path, name: str) -> list[Path]:
    """The file of a part's weights, or the files that its index lists."""
    if (part / name).is_file():
        return [part / name]
    index = part / f"{name}.index.json"
    if not index.is_file():
        raise MissingWeights(f"The model in {part.parent} has no {part.name}/{name}: save it as safetensors.")
    listed = _read(index).get("weight_map")
    names = sorted({Path(str(file)).name for file in listed.values()}) if isinstance(listed, dict) else []
    missing = [file for file in names if not (part / file).is_file()]
    if missing or not names:
        raise MissingWeights(f"The model in {part.parent} has no {part.name}/{(missing or [name])[0]}.")
    return [part / file for file in names]


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise MissingWeights(f"The model's {file.parent.name}/{file.name} cannot be read ({error}).") from error
    if not isinstance(values, dict):
        raise MissingWeights(f"The model's {file.parent.name}/{file.name} is not a JSON object.")
    return values
