"""A codec without weights, with the geometry of Wan's autoencoder: principal components of patches.

Frame 0 is cut into squares of 8 x 8 pixels, what follows into blocks of 4 x 8 x 8; each becomes 16 numbers, which are
uncorrelated and of variance 1 on the clips that the codec was fitted on. So distances can be taken in latent space, and
no autoencoder stands between an objective and what is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

CHANNELS = 16
_GROUP, _SQUARE = 4, 8
# A component that hardly varies is not blown up beyond this share of the first one's spread.
_LEAST = 1e-2
_CHUNK = 32


@dataclass(frozen=True, slots=True)
class Part:
    """The components of one kind of patch of D numbers: `mean` [D], `axes` [D, 16] orthonormal, `spread` [16]."""

    mean: Tensor
    axes: Tensor
    spread: Tensor

    def numbers(self, patches: Tensor) -> Tensor:
        """Patches [..., D] -> [..., 16]."""
        return (patches - self.mean) @ self.axes / self.spread

    def patches(self, numbers: Tensor) -> Tensor:
        """And back."""
        return (numbers * self.spread) @ self.axes.T + self.mean


@dataclass(frozen=True, slots=True)
class Codec:
    """Pixels float [N, 3, T, H, W] in [-1, 1], T = 4n + 1, to latents [N, 16, n + 1, H / 8, W / 8], and back."""

    first: Part
    rest: Part

    def encode(self, clips: Tensor) -> Tensor:
        """An `Encode` of training.encoding.vcu."""
        # What is missing in a clip is made on the CPU.
        clips = clips.to(self.first.mean.device)
        found = [self.first.numbers(_patches(clips[:, :, :1], 1))]
        if clips.shape[2] > 1:
            found.append(self.rest.numbers(_patches(clips[:, :, 1:], _GROUP)))
        return torch.cat(found, dim=1).permute(0, 4, 1, 2, 3).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels, about within [-1, 1]."""
        shown = latents.permute(0, 2, 3, 4, 1)
        first = _pixels(self.first.patches(shown[:, :1]), 1)
        if shown.shape[1] == 1:
            return first
        return torch.cat([first, _pixels(self.rest.patches(shown[:, 1:]), _GROUP)], dim=2)

    def psnr(self, clips: Tensor) -> float:
        """How near clips come back, in dB of 255 levels."""
        error = (self.decode(self.encode(clips)).clamp(-1, 1) - clips).mul(127.5).square().mean()
        return float(10 * torch.log10(255**2 / error.clamp(min=1e-12)))

    def tensors(self) -> dict[str, Tensor]:
        """What `parse` reads."""
        return {
            f"{name}.{key}": getattr(part, key)
            for name, part in (("first", self.first), ("rest", self.rest))
            for key in ("mean", "axes", "spread")
        }

    def to(self, device: torch.device) -> Codec:
        """The same on a device."""
        return parse({name: tensor.to(device) for name, tensor in self.tensors().items()})


def parse(tensors: Mapping[str, Tensor]) -> Codec:
    """The codec of `Codec.tensors`."""
    first, rest = (
        Part(tensors[f"{name}.mean"], tensors[f"{name}.axes"], tensors[f"{name}.spread"]) for name in ("first", "rest")
    )
    return Codec(first, rest)


def fit(clips: Tensor) -> Codec:
    """The codec of clips, pixels float [N, 3, T, H, W] in [-1, 1]: those that are trained on, and no others."""
    parts = []
    for frames, group in ((slice(0, 1), 1), (slice(1, None), _GROUP)):
        rows = (_patches(some[:, :, frames], group).flatten(0, -2).double() for some in clips.split(_CHUNK))
        parts.append(_part(rows))
    return Codec(*parts)


def _part(chunks: Iterable[Tensor]) -> Part:
    """The components of rows [n, D], which come in chunks: all at once they would take gigabytes."""
    count, total, products = 0, torch.zeros(1), torch.zeros(1, 1)
    for rows in chunks:
        count, total, products = count + len(rows), total + rows.sum(dim=0), products + rows.T @ rows
    mean = total / count
    values, axes = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    # From the largest on; which way an axis points is settled by its largest entry.
    axes = axes.flip(1)[:, :CHANNELS]
    axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    spread = values.flip(0)[:CHANNELS].clamp(min=0).sqrt()
    return Part(mean.float(), axes.float(), spread.clamp(min=float(spread[0]) * _LEAST).float())


def _patches(clips: Tensor, group: int) -> Tensor:
    """[N, 3, T, H, W] -> [N, T / group, h, w, 3 * group * 64]."""
    cut = clips.unflatten(4, (-1, _SQUARE)).unflatten(3, (-1, _SQUARE)).unflatten(2, (-1, group))
    return cut.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def _pixels(patches: Tensor, group: int) -> Tensor:
    """And back."""
    shown = patches.unflatten(4, (3, group, _SQUARE, _SQUARE)).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return shown.flatten(6, 7).flatten(4, 5).flatten(2, 3)
