"""Distances between two sets of samples and metrics of single samples, none of which need a network's weights.

Distances are estimated without bias from pairs of different conditions only: two samples with the same condition, one
of each set, resemble each other, which would make the distributions look nearer than they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.distillation.scenes import NEAR

_DIRECTIONS = 256
_LUMA = (0.299, 0.587, 0.114)


def bootstrap_counts(sources: Tensor, replicates: int, seed: int = 0) -> Tensor:
    """How often each bootstrap replicate draws each condition, int64 [replicates, n].

    Replicates draw `sources` [n], numbered from 0, each with all of its conditions, as these are not independent. Every
    arm gets the same draws, so that differences of arms are paired.
    """
    count = int(sources.max()) + 1
    draws = torch.randint(count, (replicates, count), generator=torch.Generator().manual_seed(seed))
    return functional.one_hot(draws, count).sum(dim=1)[:, sources]


def bandwidth(reference: Tensor) -> float:
    """The median of squared distances in a reference [n, D]: the RBF kernel's scale."""
    return float(torch.pdist(reference.double()).square().median())


def rbf(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """exp(-|a - b|^2 / scale) of rows [n, D] and [m, D]: float64 [n, m]."""
    return (-torch.cdist(a.double(), b.double()).square() / scale).exp()


def cubic(a: Tensor, b: Tensor) -> Tensor:
    """(a b / D + 1)^3, the kernel of KID. [arXiv:1801.01401]"""
    return (a.double() @ b.double().T / a.shape[1] + 1) ** 3


def mmd(within_a: Tensor, within_b: Tensor, between: Tensor, weights: Tensor) -> Tensor:
    """The unbiased squared maximum mean discrepancy [replicates]: about 0 for equal distributions, sometimes below 0.

    From kernels [n, n] of samples of the same n conditions; `weights` [replicates, n]: how often each condition counts.
    """
    weights = weights.double()
    kernel = within_a + within_b - between - between.T
    kernel = kernel - torch.diag(kernel.diagonal())
    pairs = weights.sum(dim=1).square() - weights.square().sum(dim=1)
    return torch.einsum("ri,ij,rj->r", weights, kernel, weights) / pairs.clamp(min=1)


def directions(width: int, seed: int = 0) -> Tensor:
    """Random orthonormal directions [width, k], k = `width` if that is smaller than the usual number."""
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(width, min(width, _DIRECTIONS), generator=generator, dtype=torch.float64)
    return torch.linalg.qr(gaussian)[0]


def sliced(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """The sliced Wasserstein-2 distance [replicates] of projections [n, k]; of a shift, the shift's root mean square.

    `weights` int64 [replicates, n]: how often each replicate counts each row.
    """

    def sorted_rows(rows: Tensor, counts: Tensor) -> Tensor:
        return rows.repeat_interleave(counts, dim=0).sort(dim=0).values

    return torch.stack([(sorted_rows(a, counts) - sorted_rows(b, counts)).square().mean().sqrt() for counts in weights])


class Features(nn.Module):  # type: ignore[misc]
    """Means and spreads of random 3D convolutions, fixed by a seed: pixels [N, 3, T, H, W] in [-1, 1] -> [N, 224]."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layers = nn.ModuleList()
        for in_channels, out_channels in ((3, 16), (16, 32), (32, 64)):
            layer = nn.Conv3d(in_channels, out_channels, 3, stride=(1, 2, 2), padding=1)
            with torch.no_grad():
                weight = torch.randn(layer.weight.shape, generator=generator)
                # No bias: colours would outweigh everything else.
                layer.weight.copy_(weight / layer.weight[0].numel() ** 0.5)
                layer.bias.zero_()
            self.layers.append(layer)
        self.requires_grad_(False)

    def forward(self, clips: Tensor) -> Tensor:
        """The mean and the standard deviation of each channel of each layer."""
        statistics, activations = [], clips.float()
        for layer in self.layers:
            activations = functional.leaky_relu(layer(activations), 0.2) * 2**0.5
            statistics += [activations.mean(dim=(2, 3, 4)), activations.std(dim=(2, 3, 4))]
        return torch.cat(statistics, dim=1)


def luma(clips: Tensor) -> Tensor:
    """Luma [N, T, H, W] from 0 to 255 of pixels [N, 3, T, H, W] in [-1, 1]; in these clips it is depth."""
    levels = clips.clamp(-1, 1).add(1).mul(127.5).round()
    return torch.einsum("nctyx,c->ntyx", levels, levels.new_tensor(_LUMA))


def track_error(clips: Tensor, track: Tensor) -> Tensor:
    """The mean distance [N] of the luma of clips from the track [N, T, H, W] that they should follow, of 255 levels."""
    return (luma(clips) - track.float()).abs().mean(dim=(1, 2, 3))


def track_overlap(clips: Tensor, shapes: Tensor) -> Tensor:
    """Intersection over union [N] of the pixels bright enough for a shape and `shapes`, bool [N, T, H, W]."""
    bright = luma(clips) > NEAR
    intersection = (bright & shapes).sum(dim=(1, 2, 3))
    return intersection / (bright | shapes).sum(dim=(1, 2, 3)).clamp(min=1)


def kept_psnr(clips: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """PSNR in dB [N] of the pixels that inpainting should keep, those of [N, 3, T, H, W] outside `hidden` bool
    [N, T, H, W]."""
    visible = (~hidden)[:, None].float()
    error = ((clips.clamp(-1, 1) - target).mul(127.5).square() * visible).sum(dim=(1, 2, 3, 4))
    return 10 * torch.log10(255**2 / (error / (3 * visible.sum(dim=(1, 2, 3, 4)))).clamp(min=1e-6))


def diversity(latents: Tensor) -> Tensor:
    """The mean distance between samples of a condition: latents [conditions, seeds, ...] -> [conditions]."""
    flat = latents.flatten(2).double()
    pairs = torch.cdist(flat, flat)
    seeds = flat.shape[1]
    return pairs.sum(dim=(1, 2)) / (seeds * (seeds - 1))


def steadiness(clips: Tensor) -> Tensor:
    """(255 - mean |frame - next frame|) / 255 of pixels [N, 3, T, H, W] in [-1, 1]: [N]; 1 is still.

    The formula of VBench's temporal flickering, here on clips that move, which VBench excludes.
    """
    levels = clips.clamp(-1, 1).add(1).mul(127.5).round()
    return (255 - levels.diff(dim=2).abs().mean(dim=(1, 2, 3, 4))) / 255
