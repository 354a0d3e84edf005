"""A codec without weights, with the geometry of Wan's autoencoder: principal components of patches.

Frame 0 is cut into squares of 8 x 8 pixels, the later frames into blocks of 4 x 8 x 8; each becomes 16 numbers, which
are uncorrelated and of variance 1 on the clips that the codec was fitted on. So distances can be measured in latent
space, and no autoencoder affects the comparison of objectives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

CHANNELS = 16
_GROUP, _SQUARE = 4, 8
# A component that hardly varies is scaled up no further than by this share of the first component's spread.
_MIN_SPREAD_SHARE = 1e-2
_CHUNK = 32


@dataclass(frozen=True, slots=True)
class Part:
    """The components of one kind of patch of D numbers: `mean` [D], `axes` [D, 16] orthonormal, `spread` [16]."""

    mean: Tensor
    axes: Tensor
    spread: Tensor

    def encode(self, patches: Tensor) -> Tensor:
        """Patches [..., D] -> [..., 16]."""
        return (patches - self.mean) @ self.axes / self.spread

    def decode(self, numbers: Tensor) -> Tensor:
        """[..., 16] -> patches [..., D]."""
        return (numbers * self.spread) @ self.axes.T + self.mean


@dataclass(frozen=True, slots=True)
class Codec:
    """Pixels float [N, 3, T, H, W] in [-1, 1], T = 4n + 1, to latents [N, 16, n + 1, H / 8, W / 8], and back."""

    first_frame: Part
    later_frames: Part

    def encode(self, clips: Tensor) -> Tensor:
        """An `Encode` of training.encoding.vcu."""
        # Clips with blanked parts are prepared on the CPU.
        clips = clips.to(self.first_frame.mean.device)
        latents = [self.first_frame.encode(_to_patches(clips[:, :, :1], 1))]
        if clips.shape[2] > 1:
            latents.append(self.later_frames.encode(_to_patches(clips[:, :, 1:], _GROUP)))
        return torch.cat(latents, dim=1).permute(0, 4, 1, 2, 3).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels, approximately within [-1, 1]."""
        numbers = latents.permute(0, 2, 3, 4, 1)
        head = _to_pixels(self.first_frame.decode(numbers[:, :1]), 1)
        if numbers.shape[1] == 1:
            return head
        return torch.cat([head, _to_pixels(self.later_frames.decode(numbers[:, 1:]), _GROUP)], dim=2)

    def psnr(self, clips: Tensor) -> float:
        """The reconstruction error of clips as PSNR in dB, on 255 levels."""
        error = (self.decode(self.encode(clips)).clamp(-1, 1) - clips).mul(127.5).square().mean()
        return float(10 * torch.log10(255**2 / error.clamp(min=1e-12)))

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, as `parse` reads them."""
        return {
            f"{name}.{key}": getattr(part, key)
            for name, part in (("first", self.first_frame), ("rest", self.later_frames))
            for key in ("mean", "axes", "spread")
        }

    def to(self, device: torch.device) -> Codec:
        """A copy on a device."""
        return parse({name: tensor.to(device) for name, tensor in self.tensors().items()})


def parse(tensors: Mapping[str, Tensor]) -> Codec:
    """The codec of `Codec.tensors`."""
    first_frame, later_frames = (
        Part(tensors[f"{name}.mean"], tensors[f"{name}.axes"], tensors[f"{name}.spread"]) for name in ("first", "rest")
    )
    return Codec(first_frame, later_frames)


def fit(clips: Tensor) -> Codec:
    """Fit a codec on clips, pixels float [N, 3, T, H, W] in [-1, 1]: on the training clips only."""
    parts = []
    for frames, group in ((slice(0, 1), 1), (slice(1, None), _GROUP)):
        rows = (_to_patches(chunk[:, :, frames], group).flatten(0, -2).double() for chunk in clips.split(_CHUNK))
        parts.append(_fit_part(rows))
    return Codec(*parts)


def _fit_part(chunks: Iterable[Tensor]) -> Part:
    """The components of rows [n, D], passed in chunks: all at once they would take gigabytes."""
    count, total, products = 0, torch.zeros(1), torch.zeros(1, 1)
    for rows in chunks:
        count, total, products = count + len(rows), total + rows.sum(dim=0), products + rows.T @ rows
    mean = total / count
    values, axes = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    # Sorted from the largest; the largest entry of an axis decides its sign.
    axes = axes.flip(1)[:, :CHANNELS]
    axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    spread = values.flip(0)[:CHANNELS].clamp(min=0).sqrt()
    return Part(mean.float(), axes.float(), spread.clamp(min=float(spread[0]) * _MIN_SPREAD_SHARE).float())


def _to_patches(clips: Tensor, group: int) -> Tensor:
    """[N, 3, T, H, W] -> [N, T / group, h, w, 3 * group * 64]."""
    blocks = clips.unflatten(4, (-1, _SQUARE)).unflatten(3, (-1, _SQUARE)).unflatten(2, (-1, group))
    return blocks.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def _to_pixels(patches: Tensor, group: int) -> Tensor:
    """[N, T / group, h, w, 3 * group * 64] -> [N, 3, T, H, W], the inverse of `_to_patches`."""
    blocks = patches.unflatten(4, (3, group, _SQUARE, _SQUARE)).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return blocks.flatten(6, 7).flatten(4, 5).flatten(2, 3)
