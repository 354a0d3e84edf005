"""Strict loading of a model's parts by diffusers and transformers: complete, and in the shape of VACE on Wan 2.1.

Imports neither library (callers pass the classes): shapes are checked by configurations alone, before anything is
loaded.
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

# The shapes of clips, controls and masks (`vcu`): 16 channels of 8 x 8 pixels and 4 frames; two halves and a mask of 64
# channels. An absent key means this value, as in diffusers.
_NEEDED: dict[str, dict[str, Any]] = {
    VAE: {"z_dim": 16, "temperal_downsample": [False, True, True]},
    TRANSFORMER: {"in_channels": 16, "out_channels": 16, "vace_in_channels": 96, "patch_size": [1, 2, 2]},
}
_HALVINGS = 3
# [the defaults of diffusers' WanVACETransformer3DModel and transformers' UMT5Config]
_TEXT_DIM, _D_MODEL = 4096, 512


def load_network(folder: Path, part: str, kind: Any, **options: Any) -> Any:
    """A part of a model, loaded by its diffusers or transformers class `kind` with all of its weights.

    Raises MissingWeights if it cannot be loaded, or weights are missing or of another shape: the libraries would put
    random ones in their place.
    """
    # Checked first, because the libraries would look for a pickle and report that.
    check(folder, (part,))
    module, info = call_loader(
        folder,
        part,
        lambda: kind.from_pretrained(
            folder / part, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
        ),
    )
    problems = {"lacks {} of its weights": "missing_keys", "has {} weights of another shape": "mismatched_keys"}
    if part == TRANSFORMER:
        # A text encoder may be stored in the file of a larger model.
        problems["has {} weights that its configuration does not describe"] = "unexpected_keys"
    for problem, key in problems.items():
        # Mismatched keys are (name, shape, shape).
        if names := sorted(name if isinstance(name, str) else str(name[0]) for name in info[key]):
            raise MissingWeights(f"The {part} in {folder} {problem.format(len(names))}, {names[0]} first.")
    return module


def call_loader(folder: Path, part: str, load: Callable[[], T]) -> T:
    """The result of a library's loader. Raises MissingWeights for whatever it raises, as each has its own errors."""
    outcome = attempt(ErrorCode.INTERNAL_ERROR, load)
    if isinstance(outcome, Failure):
        raise MissingWeights(f"The {part} in {folder} cannot be loaded: {' '.join(outcome.detail.split())}.")
    return outcome


def check_shape(folder: Path, part: str) -> None:
    """Raises MissingWeights if a part (`VAE`, `TRANSFORMER`) of a model does not have the shape that VACE needs."""
    config = configuration(folder, part)
    for name, needed in _NEEDED[part].items():
        if config.get(name, needed) != needed:
            raise MissingWeights(f"The {part} in {folder} has {name} {config[name]!r}, and {needed!r} is needed.")
    if part == VAE:
        _check_latents(folder, config)


def check_pair(transformer: Path, model: Path) -> None:
    """Raises MissingWeights if the transformer in one folder does not accept the outputs of a model's autoencoder and
    text encoder."""
    check_shape(model, VAE)
    check_shape(transformer, TRANSFORMER)
    text_dim = configuration(transformer, TRANSFORMER).get("text_dim", _TEXT_DIM)
    d_model = configuration(model, TEXT_ENCODER).get("d_model", _D_MODEL)
    if text_dim != d_model:
        raise MissingWeights(
            f"The {TRANSFORMER} in {transformer} takes text of {text_dim!r} numbers a token (text_dim), and the "
            f"{TEXT_ENCODER} in {model} gives {d_model!r} (d_model)."
        )


def _check_latents(folder: Path, config: dict[str, Any]) -> None:
    """Check an autoencoder's halvings of a side, and the statistics that normalise its latents."""
    levels = config.get("dim_mult", [1] * (_HALVINGS + 1))
    if not isinstance(levels, list) or len(levels) != _HALVINGS + 1:
        raise MissingWeights(f"The {VAE} in {folder} has dim_mult {levels!r}, and {_HALVINGS + 1} levels are needed.")
    for name, minimum in (("latents_mean", -math.inf), ("latents_std", 0.0)):
        values = config.get(name)
        if name in config and not (
            isinstance(values, list)
            and len(values) == _NEEDED[VAE]["z_dim"]
            and all(isinstance(value, int | float) and math.isfinite(value) and value > minimum for value in values)
        ):
            raise MissingWeights(f"The {VAE} in {folder} has {name} {values!r}: a number for each channel is needed.")
