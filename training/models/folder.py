"""The model that a user names, in diffusers' layout: where it lies, which weights count, and what they hash to.

    vae/  text_encoder/  tokenizer/  README.md (the model card)

Light on purpose (the standard library and yaml): a run asks for this before it starts anything, and a trainer asks
whether stored latents are of its model.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from annotators.weights import MissingWeights

VAE, TEXT_ENCODER, TRANSFORMER = "vae", "text_encoder", "transformer"
# The names under which diffusers and transformers save weights; nothing but safetensors is read, which runs no code.
_WEIGHTS = {
    VAE: "diffusion_pytorch_model.safetensors",
    TEXT_ENCODER: "model.safetensors",
    TRANSFORMER: "diffusion_pytorch_model.safetensors",
}
# What latents are normalised by stands in a configuration, not in the weights.
_NORMALISED_BY = ("latents_mean", "latents_std")
_ENDINGS = ("safetensors", "json", "model")
_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<commit>[0-9a-f]{40}))?")


def located(named: str) -> str:
    """A model's name made fit for every node: an absolute path, or the hub's id with its commit (`owner/name@commit`).

    `named`: a folder, or a hub id. Raises as `folder`.
    """
    where = folder(named)
    return str(where.resolve()) if Path(named).is_dir() else f"{named.partition('@')[0]}@{where.name}"


def folder(named: str, more: Iterable[str] = ()) -> Path:
    """The folder of a model: a folder, or a hub id (with `@commit`), fetched unless it is in the hub's cache here; with
    `more` parts than those that latents need.

    Raises `MissingWeights` where it is neither.
    """
    if Path(named).is_dir():
        return Path(named)
    hub = _HUB_ID.fullmatch(named)
    if hub is None:
        raise MissingWeights(f"The model {named!r} is no folder here, and no hub id (owner/name).")
    # A dependency of diffusers, which few machines have.
    from huggingface_hub import snapshot_download

    wanted = [f"{part}/*.{ending}" for part in (VAE, TEXT_ENCODER, "tokenizer", *more) for ending in _ENDINGS]
    try:
        found = snapshot_download(hub["id"], revision=hub["commit"], allow_patterns=[*wanted, "README.md"])
    except (OSError, ValueError) as error:
        why = str(error).strip().partition("\n")[0]
        raise MissingWeights(f"The model {named!r} is no folder here, and the hub does not give it ({why}).") from error
    return Path(found)


def title(where: str) -> str:
    """What to call a model that was `located`: its hub id, or its folder's name; no path of this machine."""
    return Path(where).name if Path(where).is_dir() else where


def check(model: Path, parts: Iterable[str] = (VAE, TEXT_ENCODER)) -> None:
    """Raises `MissingWeights` where weights or configuration of a part are absent, without reading the weights."""
    for part in parts:
        configuration(model, part)
        _weight_files(model / part, _WEIGHTS[part])


def configuration(model: Path, part: str) -> dict[str, Any]:
    """The configuration of one part of a model. Raises `MissingWeights` where it is absent, or no JSON object."""
    if not (model / part / "config.json").is_file():
        raise MissingWeights(f"The model in {model} has no {part}/config.json: name one in diffusers' layout.")
    return _read(model / part / "config.json")


def fingerprint(model: Path, part: str) -> str:
    """The sha256 (hex) of what decides the numbers of one part (`VAE`, `TEXT_ENCODER`, `TRANSFORMER`) of a model: its
    weight files by their own sha256, and of its configuration what latents are normalised by, of a transformer all.

    Each file is read once per process, unless it changes. Raises `MissingWeights` where one is absent.
    """
    state = hashlib.sha256()
    for file in _weight_files(model / part, _WEIGHTS[part]):
        stat = file.stat()
        state.update(f"{file.name} {_sha256(file, stat.st_size, stat.st_mtime_ns)}\n".encode())
    config = configuration(model, part)
    # Names that begin with _ say which program saved it.
    names = sorted(name for name in config if name[0] != "_") if part == TRANSFORMER else _NORMALISED_BY
    state.update(json.dumps({name: config.get(name) for name in names}).encode())
    return state.hexdigest()


def fingerprints(model: Path, parts: Iterable[str] = (VAE, TEXT_ENCODER)) -> dict[str, str]:
    """Part -> fingerprint. Raises as `fingerprint`."""
    return {part: fingerprint(model, part) for part in parts}


def licence(model: Path) -> str:
    """The licence that the model card states, or 'unknown'."""
    card = model / "README.md"
    text = card.read_text(errors="replace") if card.is_file() else ""
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    try:
        stated = yaml.safe_load(head[1]) if head else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return "unknown"
    found = stated.get("license") if isinstance(stated, dict) else None
    return found if isinstance(found, str) else "unknown"


def _weight_files(part: Path, name: str) -> list[Path]:
    """The file of a part's weights, or the files that its index lists."""
    if (part / name).is_file():
        return [part / name]
    index = part / f"{name}.index.json"
    if not index.is_file():
        raise MissingWeights(f"The model in {part.parent} has no {part.name}/{name}: save it as safetensors.")
    listed = _read(index).get("weight_map")
    names = sorted({Path(str(one)).name for one in listed.values()}) if isinstance(listed, dict) else []
    missing = [one for one in names if not (part / one).is_file()]
    if missing or not names:
        raise MissingWeights(f"The model in {part.parent} has no {part.name}/{(missing or [name])[0]}.")
    return [part / one for one in names]


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise MissingWeights(f"The model's {file.parent.name}/{file.name} cannot be read ({error}).") from error
    if not isinstance(found, dict):
        raise MissingWeights(f"The model's {file.parent.name}/{file.name} is no JSON object.")
    return found


@functools.cache
def _sha256(file: Path, size: int, mtime_ns: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
