"""The `latents` annotator: latents and embeddings of a clip by the trained model, computed once instead of every time.

Everything without random draws is stored: the clip, its caption, its control tracks, its references. The trainer
computes two things once: the latents of gray video (the inactive half under a mask of ones), a constant for each shape,
and the embeddings of the empty and the negative prompt. Latents of masked pixels are not masked latents, so a task with
a mask needs the encoder in training, or `masked_latents`.

PyTorch, diffusers and transformers are imported when an annotator is created: the registry loads this module on
machines that have none of them.
"""

from __future__ import annotations

import html
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from annotators.base import Annotation, Annotator, Frames, Picture, Sample, Weight
from annotators.weights import MissingWeights
from pipeline.formats.conditions import to_gray
from training.data.latents_file import CLIP, REFERENCE, TEXT, StoredLatents, to_bytes
from training.models import folder as model_folder
from training.models import loading
from training.models.folder import TEXT_ENCODER, VAE

Latent = NDArray[np.float16]

# The environment variable that names the model: read only where a run starts.
MODEL = "VDOT_MODEL"
# umT5's limit in Wan: models of that family are trained on no more tokens.
TOKENS = 512
# The subject's mask is not a control track: it decides what masked tasks hide.
_NOT_CONTROLS = ("mask",)
_LIBRARIES = ("torch", "diffusers", "transformers", "safetensors", "ftfy")


def choose_weights(parts: tuple[str, ...]) -> tuple[Weight, ...]:
    """Parts of the model named by `VDOT_MODEL`, as weights. Raises `MissingWeights` if there is none."""
    missing = [library for library in _LIBRARIES if find_spec(library) is None]
    if missing:
        raise MissingWeights(
            f"Latents are made with {missing[0]}, which is not installed: pip install 'vdot-data[train]'."
        )
    model = os.environ.get(MODEL)
    if not model:
        raise MissingWeights(
            f"Latents are made by the model that you train: set {MODEL} to its folder in diffusers' layout (vae/, "
            "text_encoder/, tokenizer/), or to a hub id such as Wan-AI/Wan2.1-VACE-1.3B-diffusers."
        )
    location = model_folder.locate(model)
    folder = model_folder.resolve_folder(location)
    if VAE in parts:
        loading.check_shape(folder, VAE)
    licence = model_folder.licence(folder)
    return tuple(
        Weight(f"{model_folder.title(location)}/{part}", location, model_folder.fingerprint(folder, part), licence)
        for part in parts
    )


def check_weights(weights: tuple[Weight, ...], parts: tuple[str, ...]) -> tuple[Path, dict[str, str]]:
    """The folder of chosen weights on this node, and the fingerprint of each part.

    Raises `MissingWeights` if they differ from those that the run started with.
    """
    folder = model_folder.resolve_folder(weights[0].source)
    fingerprints = model_folder.fingerprints(folder, parts)
    for weight, part in zip(weights, parts, strict=True):
        if fingerprints[part] != weight.sha256:
            raise MissingWeights(f"{folder}/{part} is not what the run started with: copy the model to every node.")
    return folder, fingerprints


class Encoder:
    """A Wan autoencoder that encodes frames into latents for storage; on a GPU if there is one, always in float32, as
    in Wan's pipelines."""

    def __init__(self, folder: Path) -> None:
        import torch

        from training.encoding import vcu

        self._torch = torch
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._vcu = vcu
        self._encode = vcu.encoder(load_autoencoder(folder, self.device))

    def __call__(self, frames: Frames) -> Latent:
        """uint8 [T, H, W, 3] RGB, T of the form 4n+1, as float16 [16, T', h, w]. Raises `ValueError` for another T,
        whose last frames the autoencoder would silently drop."""
        return self.pixels(np.asarray(frames, np.float32) / 127.5 - 1)

    def pixels(self, values: NDArray[np.float32]) -> Latent:
        """The same for pixels between -1 and 1: float32 [T, H, W, 3]."""
        if len(values) % 4 != 1:
            raise ValueError(f"a clip of {len(values)} frames has no latents: the autoencoder takes 4n+1")
        return self._latents(self._torch.from_numpy(np.ascontiguousarray(values.transpose(3, 0, 1, 2))))

    def reference(self, picture: Picture, height: int, width: int) -> Latent:
        """A picture on a white canvas, as float16 [16, 1, h, w]."""
        return self._latents(self._vcu.fitted(self._torch.from_numpy(picture.copy()), height, width)[:, None])

    def _latents(self, clip: Any) -> Latent:
        """A clip, a tensor [3, T, H, W], as float16 [16, T', h, w]."""
        latents: Latent = self._encode(clip[None])[0].to(self._torch.float16).cpu().numpy()
        return latents


class Latents(Annotator):
    """Clip, caption, control tracks and references as latents and embeddings of the model in `VDOT_MODEL`.

    Makes one file, `latents.safetensors`, whose format is defined in `training.data.latents_file`.
    """

    name: ClassVar[str] = "latents"
    version: ClassVar[str] = "2"
    files: ClassVar[tuple[str, ...]] = ("latents.safetensors",)
    sample: ClassVar[bool] = True
    gpu: ClassVar[bool] = True
    _parts: ClassVar[tuple[str, ...]] = (VAE, TEXT_ENCODER)

    @classmethod
    def choose(cls) -> tuple[Weight, ...]:
        """Autoencoder and text encoder of the user's model. Raises `MissingWeights` if none is named."""
        return choose_weights(cls._parts)

    def __init__(self, weights: tuple[Weight, ...]) -> None:
        """Load the weights from `choose`. Raises `MissingWeights` if this node has another model."""
        folder, self._made_by = check_weights(weights, self._parts)
        self._encoder = Encoder(folder)
        self._embed = make_embedder(folder, self._encoder.device)

    def __call__(self, frames: Frames, fps: float, *, sample: Sample) -> Annotation:
        """Encode one clip: uint8 [T, H, W, 3] RGB. Raises `ValueError` if T is not 4n+1, or a track has a reserved
        name."""
        tensors = {CLIP: self._encoder(frames), "gray": self._encoder(to_gray(frames))}
        for name, track in sample.tracks.items():
            if name in (*tensors, TEXT, REFERENCE):
                raise ValueError(f"a track cannot be named {name!r}: something else is stored under that name")
            if name not in _NOT_CONTROLS:
                tensors[name] = self._encoder(track())
        for number, picture in enumerate(sample.pictures.get("ref", ())):
            tensors[f"{REFERENCE}.{number}"] = self._encoder.reference(picture, *frames.shape[1:3])
        if sample.caption is not None:
            tensors[TEXT] = self._embed(sample.caption)
        stored = StoredLatents(tensors, self._made_by, sample.caption)
        return Annotation(files={self.files[0]: to_bytes(stored)})


def load_autoencoder(folder: Path, device: Any) -> Any:
    """The autoencoder of a model, in float32 and frozen. Raises as `loading.load_network` and `loading.check_shape`."""
    import torch
    from diffusers import AutoencoderKLWan

    loading.check_shape(folder, VAE)
    vae = loading.load_network(folder, VAE, AutoencoderKLWan, torch_dtype=torch.float32, low_cpu_mem_usage=False)
    return vae.eval().requires_grad_(False).to(device)


def clean_caption(caption: str) -> str:
    """A caption cleaned as in Wan's own code: mojibake repaired, curly quotes straightened, entities resolved, spaces
    collapsed. [Wan 2.1: wan/modules/tokenizers.py]"""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(caption))).split())


def make_embedder(folder: Path, device: Any, tokens: int = TOKENS) -> Callable[[str], NDArray[np.float16]]:
    """Captions to the umT5 embeddings of a model: words to float16 [tokens, dim], without padding; longer captions are
    cut to `tokens`. Raises as `loading.load_network`, and MissingWeights for a tokenizer of another vocabulary."""
    import torch
    from transformers import AutoTokenizer, UMT5EncoderModel

    if not (folder / "tokenizer").is_dir():
        raise MissingWeights(f"The model in {folder} has no tokenizer/: name one in diffusers' layout.")
    tokenizer = loading.call_loader(
        folder, "tokenizer", lambda: AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    )
    # On a GPU in bfloat16, as in Wan's pipelines: 11 GB instead of 23.
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    model = loading.load_network(folder, TEXT_ENCODER, UMT5EncoderModel, dtype=dtype)
    if len(tokenizer) > model.config.vocab_size:
        raise MissingWeights(
            f"The tokenizer in {folder} has {len(tokenizer)} tokens, and the text encoder {model.config.vocab_size}."
        )
    model = model.eval().requires_grad_(False).to(device)

    def embed(caption: str) -> NDArray[np.float16]:
        # Without padding, so the attention mask is all ones.
        words = tokenizer(clean_caption(caption), truncation=True, max_length=tokens, return_tensors="pt")
        with torch.inference_mode():
            output = model(input_ids=words.input_ids.to(device), attention_mask=words.attention_mask.to(device))
        embedding: NDArray[np.float16] = output.last_hidden_state[0].to(torch.float16).cpu().numpy()
        return embedding

    return embed
