"""Training examples from the stream's micro-batches: clean latents, text and context, on the device."""

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
from training.encoding.latents import load_autoencoder, make_embedder
from training.models.networks import Conditions

# The limit of cached latents in host memory, in bytes: of a set that exceeds it nothing is cached.
_CACHE_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Example:
    """B clips of one bucket: `clean` [B, 16, R + T', h, w] float32, references first, and their conditions."""

    position: int
    bucket: Bucket
    clean: Tensor
    conditions: Conditions


class ExampleEncoder:
    """Turns micro-batches into examples of one model: by its autoencoder and text encoder, or from stored latents.

    The constructor raises MissingWeights if the model lacks a part.
    """

    def __init__(self, folder: Path, model: Model, data: Data, device: torch.device) -> None:
        self._data, self._device, self._tokens = data, device, model.text_tokens
        vae = load_autoencoder(folder, device)
        self._encode, self._decode = CachedEncoder(vcu.encoder(vae)), vcu.decoder(vae)
        embed = make_text_embedder(folder, device, model.text_tokens)
        self.empty, self.negative = embed(""), embed(model.negative_prompt)
        # Stored latents include embedded text; pixels come with captions, which need the text encoder.
        self._embed = embed if data.form == "pixels" else None
        self._gray_latents: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, batch: Batch) -> Example:
        """Raises UsageError if the stream yields pixels and the run needs latents."""
        if batch.form == "latents":
            return self._from_latents(batch)
        if self._embed is None:
            raise UsageError(
                f"the task {batch.bucket.task} of {batch.bucket.dataset} has no latents that fit this model: store "
                "them (`vdot-data annotate OUT --with latents`, or `masked_latents`), or train with `form: pixels`"
            )
        batch = batch if self._data.size is None else resize_batch(batch, self._data.size)
        clip = self._encode(vcu.pixels(torch.from_numpy(batch.arrays["clip"]))).to(self._device)
        context = vcu.of_batch(self._encode, batch, self._gray(batch.bucket)).to(self._device)
        text = torch.cat([self._embed(caption) for caption in batch.captions])
        return self._build(batch, clip, context, text)

    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """Decode clean latents without references, [B, 16, T', h, w], to uint8 [B, T, H, W, 3] RGB."""
        return vcu.frames(self._decode(latents))

    def _from_latents(self, batch: Batch) -> Example:
        clip = torch.from_numpy(batch.arrays["clip"]).to(self._device)
        context = vcu.of_latents(batch, self._gray(batch.bucket).to(self._device))
        texts = [torch.from_numpy(item["text"]) if "text" in item else None for item in batch.items]
        text = torch.cat([self.empty if embedding is None else self._pad(embedding) for embedding in texts])
        return self._build(batch, clip, context, text)

    def _build(self, batch: Batch, clip: Tensor, context: Tensor, text: Tensor) -> Example:
        # A reference is a frame like the others: its target is itself.
        references = context[:, : vcu.CHANNELS, : batch.bucket.references].float()
        clean = torch.cat([references, clip.float()], dim=2)
        return Example(batch.position, batch.bucket, clean, Conditions(text, context))

    def _gray(self, bucket: Bucket) -> Tensor:
        """The latents of gray video, on the CPU."""
        shape = bucket.frames, bucket.height, bucket.width
        if shape not in self._gray_latents:
            self._gray_latents[shape] = vcu.nothing(self._encode, shape).float()
        return self._gray_latents[shape]

    def _pad(self, text: Tensor) -> Tensor:
        return pad_text(text.to(self._device, torch.float32), self._tokens)


class CachedEncoder:
    """An `Encode` to the CPU that encodes clips one by one and caches latents by a hash of the pixels: in a small data
    set the same clips recur. A clip's latents do not depend on other clips."""

    def __init__(self, encode: vcu.Encode, size: int = _CACHE_BYTES) -> None:
        """`size`: bytes of latents; once exceeded, nothing is cached any more."""
        self._encode, self._room = encode, size
        self._cache: dict[tuple[Any, ...], Tensor] = {}

    def __call__(self, clips: Tensor) -> Tensor:
        """Latents [N, 16, T', h, w] of pixels float [N, 3, T, H, W]."""
        return torch.cat([self._latents(clip) for clip in clips.split(1)])

    def _latents(self, clip: Tensor) -> Tensor:
        if self._room < 0:
            return self._encode(clip).cpu()
        key = tuple(clip.shape), hashlib.blake2b(clip.contiguous().numpy().data, digest_size=16).digest()
        if key not in self._cache:
            self._cache[key] = latents = self._encode(clip).cpu()
            self._room -= latents.nbytes
            if self._room < 0:
                self._cache.clear()
                return latents
        return self._cache[key]


def resize_batch(batch: Batch, size: Size) -> Batch:
    """A batch of pixels with frames scaled to cover the new size, and center-cropped."""

    def resize(name: str, frames: Any) -> Any:
        planes = torch.from_numpy(frames).transpose(1, 2)
        resized = vcu.covered(planes.flatten(0, 1), (size.height, size.width), mask=name == "mask")
        return resized.unflatten(0, planes.shape[:2]).transpose(1, 2).contiguous().numpy()

    arrays = {name: resize(name, frames) for name, frames in batch.arrays.items()}
    bucket = replace(batch.bucket, height=size.height, width=size.width)
    return replace(batch, bucket=bucket, arrays=arrays)


def pad_text(text: Tensor, tokens: int) -> Tensor:
    """Embeddings [n, dim] as [1, tokens, dim], padded with zeros as Wan needs."""
    truncated = text[:tokens]
    return functional.pad(truncated, (0, 0, 0, tokens - len(truncated)))[None]


def make_text_embedder(folder: Path, device: torch.device, tokens: int) -> Callable[[str], Tensor]:
    """A function from captions to embeddings [1, tokens, dim], float32, by the model's text encoder."""
    embed = make_embedder(folder, device, tokens)
    return lambda caption: pad_text(torch.from_numpy(embed(caption)).to(device, torch.float32), tokens)
