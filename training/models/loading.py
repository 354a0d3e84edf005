"""Parts of a model as diffusers and transformers load them: whole or not at all, and of the shape of VACE's conditions
on Wan 2.1.

Light on purpose (the libraries come with the classes that are loaded): shapes are judged by configurations alone,
before anything is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from annotators.weights import MissingWeights
from pipeline.errors import ErrorCode, Failure, attempt
from training.models.folder import TEXT_ENCODER, TRANSFORMER, VAE, check, configuration

T = TypeVar("T")

# What clips, controls and masks are brought to (`vcu`): 16 channels of 8 x 8 pixels and 4 frames; two halves and a mask
# of 64. A key that is absent has this value: so it is in diffusers.
_NEEDED: dict[str, dict[str, Any]] = {
    VAE: {"z_dim": 16, "temperal_downsample": [False, True, True]},
    TRANSFORMER: {"in_channels": 16, "out_channels": 16, "vace_in_channels": 96, "patch_size": [1, 2, 2]},
}
_HALVINGS = 3
# [the defaults of diffusers' WanVACETransformer3DModel and transformers' UMT5Config]
_TEXT_DIM, _D_MODEL = 4096, 512


def network(folder: Path, part: str, kind: Any, **options: Any) -> Any:
    """A part of a model as its class `kind` of diffusers or transformers loads it, with all of its weights.

    Raises MissingWeights where it cannot be loaded, or weights are missing or of another shape: these libraries would
    put random ones in their place.
    """
    # Before the libraries, which would look for a pickle and say so.
    check(folder, (part,))
    made, said = tried(
        folder,
        part,
        lambda: kind.from_pretrained(
            folder / part, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
        ),
    )
    troubles = {"lacks {} of its weights": "missing_keys", "has {} weights of another shape": "mismatched_keys"}
    if part == TRANSFORMER:
        # A text encoder may lie in the file of a larger model.
        troubles["has {} weights that its configuration knows nothing of"] = "unexpected_keys"
    for what, kind_of in troubles.items():
        # Of another shape is (name, shape, shape).
        if found := sorted(name if isinstance(name, str) else str(name[0]) for name in said[kind_of]):
            raise MissingWeights(f"The {part} in {folder} {what.format(len(found))}, {found[0]} first.")
    return made


def tried(folder: Path, part: str, load: Callable[[], T]) -> T:
    """What a library makes of a part of a model. Raises MissingWeights for whatever it raises: each has its own."""
    made = attempt(ErrorCode.INTERNAL_ERROR, load)
    if isinstance(made, Failure):
        raise MissingWeights(f"The {part} in {folder} cannot be loaded: {' '.join(made.detail.split())}.")
    return made


def fitting(folder: Path, part: str) -> None:
    """Raises MissingWeights where a part (`VAE`, `TRANSFORMER`) of a model has another shape than VACE's conditions."""
    told = configuration(folder, part)
    for name, needed in _NEEDED[part].items():
        if told.get(name, needed) != needed:
            raise MissingWeights(f"The {part} in {folder} has {name} {told[name]!r}, and {needed!r} is needed.")
    if part == VAE:
        _wan_latents(folder, told)


def together(transformer: Path, model: Path) -> None:
    """Raises MissingWeights where the transformer in one folder does not take what the autoencoder and the text encoder
    of a model give it."""
    fitting(model, VAE)
    fitting(transformer, TRANSFORMER)
    taken = configuration(transformer, TRANSFORMER).get("text_dim", _TEXT_DIM)
    given = configuration(model, TEXT_ENCODER).get("d_model", _D_MODEL)
    if taken != given:
        raise MissingWeights(
            f"The {TRANSFORMER} in {transformer} takes text of {taken!r} numbers a token (text_dim), and the "
            f"{TEXT_ENCODER} in {model} gives {given!r} (d_model)."
        )


def _wan_latents(folder: Path, told: dict[str, Any]) -> None:
    """An autoencoder's halvings of a side, and what its latents are normalised by."""
    levels = told.get("dim_mult", [1] * (_HALVINGS + 1))
    if not isinstance(levels, list) or len(levels) != _HALVINGS + 1:
        raise MissingWeights(f"The {VAE} in {folder} has dim_mult {levels!r}, and {_HALVINGS + 1} levels are needed.")
    for name, least in (("latents_mean", -math.inf), ("latents_std", 0.0)):
        values = told.get(name)
        if name in told and not (
            isinstance(values, list)
            and len(values) == _NEEDED[VAE]["z_dim"]
            and all(isinstance(one, int | float) and math.isfinite(one) and one > least for one in values)
        ):
            raise MissingWeights(f"The {VAE} in {folder} has {name} {values!r}: a number for each channel is needed.")
