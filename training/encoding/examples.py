"""What a network is trained on, from the stream's micro-batches: clean latents, text and context, on the device."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.errors import UsageError
from pipeline.mixture.mixture import Bucket
from training.config import Data, Model, Size
from training.data.stream import Batch
from training.encoding import vcu
from training.encoding.latents import autoencoder, embedder
from training.models.networks import Conditions

# What is kept of latents in the host's memory, in bytes: of a set that takes more nothing is kept.
_KEPT = 512 << 20


@dataclass(frozen=True, slots=True)
class Example:
    """B clips of one bucket: `clean` [B, 16, R + T', h, w] float32, references first, and what they are made from."""

    position: int
    bucket: Bucket
    clean: Tensor
    conditions: Conditions


class Examples:
    """Micro-batches to examples of one model: by its autoencoder and text encoder, or from stored latents alone.

    Raises MissingWeights, when made, where the model lacks what is needed.
    """

    def __init__(self, folder: Path, model: Model, data: Data, device: torch.device) -> None:
        self._data, self._device, self._tokens = data, device, model.text_tokens
        vae = autoencoder(folder, device)
        self._encode, self._decode = Remembered(vcu.encoder(vae)), vcu.decoder(vae)
        embed = text_embedder(folder, device, model.text_tokens)
        self.empty, self.negative = embed(""), embed(model.negative_prompt)
        # Stored latents come with their text; pixels with captions, and a text encoder that must stay.
        self._embed = embed if data.form == "pixels" else None
        self._known: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, batch: Batch) -> Example:
        """Raises UsageError where the stream gives pixels, and this run was to be of latents."""
        if batch.form == "latents":
            return self._of_latents(batch)
        if self._embed is None:
            raise UsageError(
                f"the task {batch.bucket.task} of {batch.bucket.dataset} has no latents that fit this model: store "
                "them (`vdot-data annotate OUT --with latents`, or `masked_latents`), or train with `form: pixels`"
            )
        batch = batch if self._data.size is None else resized(batch, self._data.size)
        clip = self._encode(vcu.pixels(torch.from_numpy(batch.arrays["clip"]))).to(self._device)
        context = vcu.of_batch(self._encode, batch, self._gray(batch.bucket)).to(self._device)
        text = torch.cat([self._embed(caption) for caption in batch.captions])
        return self._example(batch, clip, context, text)

    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """Clean latents without references, [B, 16, T', h, w], as uint8 [B, T, H, W, 3] RGB."""
        return vcu.frames(self._decode(latents))

    def _of_latents(self, batch: Batch) -> Example:
        clip = torch.from_numpy(batch.arrays["clip"]).to(self._device)
        context = vcu.of_latents(batch, self._gray(batch.bucket).to(self._device))
        texts = [torch.from_numpy(item["text"]) if "text" in item else None for item in batch.items]
        text = torch.cat([self.empty if one is None else self._padded(one) for one in texts])
        return self._example(batch, clip, context, text)

    def _example(self, batch: Batch, clip: Tensor, context: Tensor, text: Tensor) -> Example:
        # A reference is a frame like the others: what is to be made of it is itself.
        references = context[:, : vcu.CHANNELS, : batch.bucket.references].float()
        clean = torch.cat([references, clip.float()], dim=2)
        return Example(batch.position, batch.bucket, clean, Conditions(text, context))

    def _gray(self, bucket: Bucket) -> Tensor:
        """What nothing is encoded as, on the CPU."""
        shape = bucket.frames, bucket.height, bucket.width
        if shape not in self._known:
            self._known[shape] = vcu.nothing(self._encode, shape).float()
        return self._known[shape]

    def _padded(self, text: Tensor) -> Tensor:
        return padded(text.to(self._device, torch.float32), self._tokens)


class Remembered:
    """An `Encode` on the CPU that takes one clip after the other and keeps what it made of them, known by their pixels:
    of a small set the same come again and again. What a clip is encoded as depends on no other."""

    def __init__(self, encode: vcu.Encode, size: int = _KEPT) -> None:
        """`size`: bytes of latents; once they are exceeded nothing is kept any more."""
        self._encode, self._room = encode, size
        self._known: dict[tuple[Any, ...], Tensor] = {}

    def __call__(self, clips: Tensor) -> Tensor:
        """Latents [N, 16, T', h, w] of pixels float [N, 3, T, H, W]."""
        return torch.cat([self._latents(clip) for clip in clips.split(1)])

    def _latents(self, clip: Tensor) -> Tensor:
        if self._room < 0:
            return self._encode(clip).cpu()
        key = tuple(clip.shape), hashlib.blake2b(clip.contiguous().numpy().data, digest_size=16).digest()
        if key not in self._known:
            self._known[key] = made = self._encode(clip).cpu()
            self._room -= made.nbytes
            if self._room < 0:
                self._known.clear()
                return made
        return self._known[key]


def resized(batch: Batch, size: Size) -> Batch:
    """A batch of pixels whose frames are scaled, as large as they cover the new shape, and cut in the middle."""

    def fit(name: str, frames: Any) -> Any:
        shown = torch.from_numpy(frames).transpose(1, 2)
        small = vcu.covered(shown.flatten(0, 1), (size.height, size.width), mask=name == "mask")
        return small.unflatten(0, shown.shape[:2]).transpose(1, 2).contiguous().numpy()

    arrays = {name: fit(name, frames) for name, frames in batch.arrays.items()}
    told = replace(batch.bucket, height=size.height, width=size.width)
    return replace(batch, bucket=told, arrays=arrays)


def padded(text: Tensor, tokens: int) -> Tensor:
    """Embeddings [n, dim] as [1, tokens, dim], zeros after the last: so Wan is given them."""
    cut = text[:tokens]
    return functional.pad(cut, (0, 0, 0, tokens - len(cut)))[None]


def text_embedder(folder: Path, device: torch.device, tokens: int) -> Callable[[str], Tensor]:
    """Captions to embeddings [1, tokens, dim], float32, by the model's own text encoder."""
    embed = embedder(folder, device, tokens)
    return lambda caption: padded(torch.from_numpy(embed(caption)).to(device, torch.float32), tokens)
