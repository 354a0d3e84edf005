"""Latents as a layer: what a trainer's autoencoder and text encoder make of a clip, computed once instead of each time.

Stored is whatever has no draw in it: the clip, its caption, its control tracks, its references. Two things are left to
the trainer, who computes them once: the autoencoder's answer to nothing (the inactive half under a mask of ones), which
is one constant for each shape, and the embeddings of the empty and the negative prompt. Latents of masked pixels are
not masked latents, so a task with a mask needs the encoder at hand, or `masked_latents`.

PyTorch, diffusers and transformers are imported when an annotator is made: the registry loads this module on machines
that have none of them.
"""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from annotators.base import Annotation, Frames, Picture, Sample, Signal, Weight
from annotators.weights import MissingWeights
from pipeline.formats.conditions import to_gray
from training.data.latents_file import CLIP, REFERENCE, TEXT, Stored, written
from training.models import folder as model_folder
from training.models import loading
from training.models.folder import TEXT_ENCODER, VAE

Latent = NDArray[np.float16]

# The environment variable that names the model: read where a run starts, and nowhere else.
MODEL = "VDOT_MODEL"
# umT5's limit in Wan: what comes after it no model of that family has seen.
TOKENS = 512
# The subject's mask is no control: it decides what masked tasks hide.
_NO_CONTROL = ("mask",)
_LIBRARIES = ("torch", "diffusers", "transformers", "safetensors", "ftfy")


def chosen(parts: tuple[str, ...]) -> tuple[Weight, ...]:
    """The parts of the model that `VDOT_MODEL` names, as weights. Raises `MissingWeights` where there is none."""
    absent = [library for library in _LIBRARIES if find_spec(library) is None]
    if absent:
        raise MissingWeights(f"Latents are made with {absent[0]}, which is not here: pip install 'vdot-data[train]'.")
    named = os.environ.get(MODEL)
    if not named:
        raise MissingWeights(
            f"Latents are made by the model that you train: set {MODEL} to its folder in diffusers' layout (vae/, "
            "text_encoder/, tokenizer/), or to a hub id such as Wan-AI/Wan2.1-VACE-1.3B-diffusers."
        )
    where = model_folder.located(named)
    folder = model_folder.folder(where)
    if VAE in parts:
        loading.fitting(folder, VAE)
    licence = model_folder.licence(folder)
    return tuple(
        Weight(f"{model_folder.title(where)}/{part}", where, model_folder.fingerprint(folder, part), licence)
        for part in parts
    )


def checked(weights: tuple[Weight, ...], parts: tuple[str, ...]) -> tuple[Path, dict[str, str]]:
    """The folder of chosen weights on this node, and the fingerprint of each part.

    Raises `MissingWeights` where they are not those that the run began with.
    """
    folder = model_folder.folder(weights[0].source)
    found = model_folder.fingerprints(folder, parts)
    for weight, part in zip(weights, parts, strict=True):
        if found[part] != weight.sha256:
            raise MissingWeights(f"{folder}/{part} is not what the run began with: copy the model to every node.")
    return folder, found


class Encoder:
    """A Wan autoencoder that makes stored latents of frames; on the GPU where there is one, in float32 on both, as
    Wan's pipelines run it."""

    def __init__(self, folder: Path) -> None:
        import torch

        from training.encoding import vcu

        self._torch = torch
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._vcu = vcu
        self._encode = vcu.encoder(autoencoder(folder, self.device))

    def __call__(self, frames: Frames) -> Latent:
        """uint8 [T, H, W, 3] RGB, T of the form 4n+1, as float16 [16, T', h, w]. Raises `ValueError` for another T,
        whose last frames the autoencoder would drop in silence."""
        return self.pixels(np.asarray(frames, np.float32) / 127.5 - 1)

    def pixels(self, values: NDArray[np.float32]) -> Latent:
        """The same of pixels between -1 and 1: float32 [T, H, W, 3]."""
        if len(values) % 4 != 1:
            raise ValueError(f"a clip of {len(values)} frames has no latents: the autoencoder takes 4n+1")
        return self._latents(self._torch.from_numpy(np.ascontiguousarray(values.transpose(3, 0, 1, 2))))

    def reference(self, picture: Picture, height: int, width: int) -> Latent:
        """A picture on a white canvas, as float16 [16, 1, h, w]."""
        return self._latents(self._vcu.fitted(self._torch.from_numpy(picture.copy()), height, width)[:, None])

    def _latents(self, clip: Any) -> Latent:
        """A clip, a tensor [3, T, H, W], as float16 [16, T', h, w]."""
        made: Latent = self._encode(clip[None])[0].to(self._torch.float16).cpu().numpy()
        return made


class Latents:
    """Clip, caption, control tracks and references as latents and embeddings of the model in `VDOT_MODEL`.

    Makes one file, `latents.safetensors`; what is in it stands in `stored_latents`.
    """

    name: ClassVar[str] = "latents"
    version: ClassVar[str] = "2"
    tracks: ClassVar[tuple[str, ...]] = ()
    signals: ClassVar[Mapping[str, Signal]] = {}
    weights: ClassVar[tuple[Weight, ...]] = ()
    files: ClassVar[tuple[str, ...]] = ("latents.safetensors",)
    sample: ClassVar[bool] = True
    gpu: ClassVar[bool] = True
    _parts: ClassVar[tuple[str, ...]] = (VAE, TEXT_ENCODER)

    @classmethod
    def choose(cls) -> tuple[Weight, ...]:
        """Autoencoder and text encoder of the user's model. Raises `MissingWeights` where none is named."""
        return chosen(cls._parts)

    def __init__(self, weights: tuple[Weight, ...]) -> None:
        """Load what `choose` gave. Raises `MissingWeights` where this node has another model."""
        folder, self._made_by = checked(weights, self._parts)
        self._encoder = Encoder(folder)
        self._embed = embedder(folder, self._encoder.device)

    def __call__(self, frames: Frames, fps: float, *, sample: Sample) -> Annotation:
        """Encode one clip: uint8 [T, H, W, 3] RGB. Raises `ValueError` where T is not 4n+1, or a track's name is that
        of something else."""
        made = {CLIP: self._encoder(frames), "gray": self._encoder(to_gray(frames))}
        for name, track in sample.tracks.items():
            if name in (*made, TEXT, REFERENCE):
                raise ValueError(f"a track named {name!r} cannot be told from what is stored under that name")
            if name not in _NO_CONTROL:
                made[name] = self._encoder(track())
        for number, picture in enumerate(sample.pictures.get("ref", ())):
            made[f"{REFERENCE}.{number}"] = self._encoder.reference(picture, *frames.shape[1:3])
        if sample.caption is not None:
            made[TEXT] = self._embed(sample.caption)
        stored = Stored(made, self._made_by, sample.caption)
        return Annotation(files={self.files[0]: written(stored)})


def autoencoder(folder: Path, device: Any) -> Any:
    """The autoencoder of a model, in float32, not to be trained. Raises as `loading.network`, and as
    `loading.fitting`."""
    import torch
    from diffusers import AutoencoderKLWan

    loading.fitting(folder, VAE)
    made = loading.network(folder, VAE, AutoencoderKLWan, torch_dtype=torch.float32, low_cpu_mem_usage=False)
    return made.eval().requires_grad_(False).to(device)


def cleaned(caption: str) -> str:
    """A caption as Wan's own code gives it to umT5: what was mangled mended, curly quotes made straight, entities
    resolved, spaces made single. [Wan 2.1: wan/modules/tokenizers.py]"""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(caption))).split())


def embedder(folder: Path, device: Any, tokens: int = TOKENS) -> Callable[[str], NDArray[np.float16]]:
    """Captions to the umT5 embeddings of a model: words to float16 [tokens, dim], without padding; longer captions are
    cut to `tokens`. Raises as `loading.network`, and MissingWeights for a tokenizer of another vocabulary."""
    import torch
    from transformers import AutoTokenizer, UMT5EncoderModel

    if not (folder / "tokenizer").is_dir():
        raise MissingWeights(f"The model in {folder} has no tokenizer/: name one in diffusers' layout.")
    tokenizer = loading.tried(
        folder, "tokenizer", lambda: AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    )
    # On a GPU in bfloat16, as Wan's pipelines run it: 11 GB instead of 23.
    kind = torch.float32 if device.type == "cpu" else torch.bfloat16
    model = loading.network(folder, TEXT_ENCODER, UMT5EncoderModel, dtype=kind)
    if len(tokenizer) > model.config.vocab_size:
        raise MissingWeights(
            f"The tokenizer in {folder} has {len(tokenizer)} tokens, and the text encoder {model.config.vocab_size}."
        )
    model = model.eval().requires_grad_(False).to(device)

    def embed(caption: str) -> NDArray[np.float16]:
        # No padding, so none to leave out: a mask would only hide what is not there.
        words = tokenizer(cleaned(caption), truncation=True, max_length=tokens, return_tensors="pt")
        with torch.inference_mode():
            shown = model(input_ids=words.input_ids.to(device), attention_mask=words.attention_mask.to(device))
        made: NDArray[np.float16] = shown.last_hidden_state[0].to(torch.float16).cpu().numpy()
        return made

    return embed
