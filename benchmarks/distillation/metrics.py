"""How far two sets of samples are apart, and what one sample is like: numbers that need no network's weights.

Distances are estimated without bias from pairs of different conditions only: a sample of one set and one of the other
that were made from the same condition resemble each other, which would look like nearness of distributions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.distillation.scenes import NEAR

_DIRECTIONS = 256
_LUMA = (0.299, 0.587, 0.114)


def draws(sources: Tensor, replicates: int, seed: int = 0) -> Tensor:
    """Bootstrap: how often each replicate draws each condition, int64 [replicates, n]. Drawn are `sources` [n], from 0
    on, each with all of its conditions, as these are not independent. The same for every arm, so that differences of
    arms are paired."""
    count = int(sources.max()) + 1
    drawn = torch.randint(count, (replicates, count), generator=torch.Generator().manual_seed(seed))
    return functional.one_hot(drawn, count).sum(dim=1)[:, sources]


def bandwidth(reference: Tensor) -> float:
    """The median of squared distances in a reference [n, D]: the RBF kernel's scale."""
    return float(torch.pdist(reference.double()).square().median())


def rbf(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """exp(-|a - b|^2 / scale) of rows [n, D] and [m, D]: float64 [n, m]."""
    return (-torch.cdist(a.double(), b.double()).square() / scale).exp()


def cubic(a: Tensor, b: Tensor) -> Tensor:
    """(a b / D + 1)^3, the kernel of KID. [arXiv:1801.01401]"""
    return (a.double() @ b.double().T / a.shape[1] + 1) ** 3


def mmd(own: Tensor, others: Tensor, between: Tensor, weights: Tensor) -> Tensor:
    """The squared maximum mean discrepancy, without bias, from kernels [n, n] of samples of the same n conditions, each
    counted so often (`weights` [replicates, n]): [replicates]. About 0, and at times below, for equal distributions."""
    weights = weights.double()
    kernel = own + others - between - between.T
    kernel = kernel - torch.diag(kernel.diagonal())
    pairs = weights.sum(dim=1).square() - weights.square().sum(dim=1)
    return torch.einsum("ri,ij,rj->r", weights, kernel, weights) / pairs.clamp(min=1)


def directions(width: int, seed: int = 0) -> Tensor:
    """Orthonormal directions [width, k] at random, all of them where there are few."""
    made = torch.Generator().manual_seed(seed)
    shown = torch.randn(width, min(width, _DIRECTIONS), generator=made, dtype=torch.float64)
    return torch.linalg.qr(shown)[0]


def sliced(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Sliced Wasserstein-2 of projections [n, k], whose rows each replicate counts so often (`weights` int64
    [replicates, n]): [replicates]. Of a shift it is the shift's root mean square."""

    def sorted_rows(shown: Tensor, counts: Tensor) -> Tensor:
        return shown.repeat_interleave(counts, dim=0).sort(dim=0).values

    return torch.stack([(sorted_rows(a, one) - sorted_rows(b, one)).square().mean().sqrt() for one in weights])


class Features(nn.Module):  # type: ignore[misc]
    """Means and spreads of random 3D convolutions: pixels [N, 3, T, H, W] in [-1, 1] -> [N, 224]. Fixed by a seed."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        made = torch.Generator().manual_seed(seed)
        self.layers = nn.ModuleList()
        for given, width in ((3, 16), (16, 32), (32, 64)):
            layer = nn.Conv3d(given, width, 3, stride=(1, 2, 2), padding=1)
            with torch.no_grad():
                shown = torch.randn(layer.weight.shape, generator=made)
                # No weight at all for a constant: colours would count for all else.
                layer.weight.copy_(shown / layer.weight[0].numel() ** 0.5)
                layer.bias.zero_()
            self.layers.append(layer)
        self.requires_grad_(False)

    def forward(self, clips: Tensor) -> Tensor:
        """Of each layer: the mean and the standard deviation of each channel."""
        found, shown = [], clips.float()
        for layer in self.layers:
            shown = functional.leaky_relu(layer(shown), 0.2) * 2**0.5
            found += [shown.mean(dim=(2, 3, 4)), shown.std(dim=(2, 3, 4))]
        return torch.cat(found, dim=1)


def luma(clips: Tensor) -> Tensor:
    """Luma [N, T, H, W] from 0 to 255 of pixels [N, 3, T, H, W] in [-1, 1]: depth, in these clips."""
    levels = clips.clamp(-1, 1).add(1).mul(127.5).round()
    return torch.einsum("nctyx,c->ntyx", levels, levels.new_tensor(_LUMA))


def track_error(clips: Tensor, track: Tensor) -> Tensor:
    """The mean distance of the luma that clips have from the track [N, T, H, W] that they were to follow, in levels of
    255: [N]."""
    return (luma(clips) - track.float()).abs().mean(dim=(1, 2, 3))


def track_overlap(clips: Tensor, shapes: Tensor) -> Tensor:
    """Intersection over union of what is bright enough for a shape, and of where shapes are, bool [N, T, H, W]: [N]."""
    found = luma(clips) > NEAR
    both = (found & shapes).sum(dim=(1, 2, 3))
    return both / (found | shapes).sum(dim=(1, 2, 3)).clamp(min=1)


def kept_psnr(clips: Tensor, given: Tensor, hidden: Tensor) -> Tensor:
    """PSNR in dB of what pixels [N, 3, T, H, W] were to keep, all outside of `hidden` bool [N, T, H, W]: [N]."""
    kept = (~hidden)[:, None].float()
    error = ((clips.clamp(-1, 1) - given).mul(127.5).square() * kept).sum(dim=(1, 2, 3, 4))
    return 10 * torch.log10(255**2 / (error / (3 * kept.sum(dim=(1, 2, 3, 4)))).clamp(min=1e-6))


def diversity(latents: Tensor) -> Tensor:
    """The mean distance of samples of one condition: latents [conditions, seeds, ...] -> [conditions]."""
    flat = latents.flatten(2).double()
    pairs = torch.cdist(flat, flat)
    seeds = flat.shape[1]
    return pairs.sum(dim=(1, 2)) / (seeds * (seeds - 1))


def steadiness(clips: Tensor) -> Tensor:
    """(255 - mean |frame - next frame|) / 255 of pixels [N, 3, T, H, W] in [-1, 1]: [N]. The formula of VBench's
    temporal flickering, on clips that move, which VBench leaves out: 1 is still."""
    levels = clips.clamp(-1, 1).add(1).mul(127.5).round()
    return (255 - levels.diff(dim=2).abs().mean(dim=(1, 2, 3, 4))) / 255
