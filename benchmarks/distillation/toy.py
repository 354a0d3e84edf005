"""A toy with exact scores that shows what DMD, transport and its unbalanced form do to modes and to outliers.

The teacher is a mixture of Gaussians on a ring, the student a cloud of points, each the middle of a Gaussian of its own
as wide as the teacher's. The prediction of either for a noisy point is then the mean of the posterior, in closed form:
there is no network, and only the objective matters. The points are the tokens of one frame of one latent, so that
`training.objectives` is used unchanged: a token of one channel has 2 x 2 numbers, of which the ring takes two.

Run it: python -m benchmarks.distillation.toy
"""

from __future__ import annotations

import json
import math
import time
from typing import Any

import torch
from torch import Tensor

from training.diffusion.flow_matching import add_noise
from training.diffusion.schedule import Levels
from training.objectives import dmd, ot
from training.objectives.ot import TransportOptions

_MODES, _RADIUS, _WIDTH, _NUMBERS = 8, 4.0, 0.3, 4
# The student's points are the tokens of a square frame.
_SIDE = 12
_POINTS = _SIDE * _SIDE
# A mode counts as found when it has this share of the points that it should have.
_FOUND_SHARE = 0.25
ARMS: dict[str, TransportOptions | None] = {
    "DMD": None,
    "DMD + transport": TransportOptions(),
    "transport alone": TransportOptions(weight=1.0),
    "DMD + unbalanced, rho 1": TransportOptions(rho=1.0),
    "DMD + unbalanced, rho 0.1": TransportOptions(rho=0.1),
}


def measure(steps: int = 200, rate: float = 0.15, seeds: int = 3) -> dict[str, Any]:
    """Each arm from two starts: all points in two of the modes, and one point in sixteen far away."""
    started = time.perf_counter()
    results: dict[str, Any] = {
        "modes": _MODES, "points": _POINTS, "steps": steps, "rate": rate, "seeds": seeds,
        "torch": torch.__version__,
    }  # fmt: skip
    for name, starting_points in (("two modes", _two_modes), ("outliers", _outliers)):
        results[name] = {
            title: [run(starting_points(seed), options, steps, rate, seed) for seed in range(seeds)]
            for title, options in ARMS.items()
        }
    return {**results, "s": round(time.perf_counter() - started, 1)}


def run(points: Tensor, options: TransportOptions | None, steps: int, rate: float, seed: int) -> dict[str, Any]:
    """Move points [N, 4] by gradient steps; summarizes them at the end and a quarter of the way."""
    generator = torch.Generator().manual_seed(seed)
    means = ring()
    early: dict[str, float] = {}
    for step in range(steps):
        sample = points + _WIDTH * torch.randn(points.shape, generator=generator)
        sigma = Levels().from_uniform(torch.rand(1, generator=generator, dtype=torch.float64))
        noise = torch.randn(points.shape, generator=generator)
        noisy = add_noise(_latents(sample), _latents(noise), sigma)
        fake, real = (_latents(posterior(_points(noisy), sigma, middles)) for middles in (points, means))
        transported = ot.compute_transport(fake, real, options) if options else None
        difference = ot.mix_residual(fake, real, transported, options.weight if options else 0.0)
        points = points - rate * _points(dmd.direction(difference, _latents(sample), real))
        if step + 1 == steps // 4:
            early = summarize(points)
    return {"early": early, "end": summarize(points)}


def posterior(noisy: Tensor, sigma: Tensor, middles: Tensor) -> Tensor:
    """The posterior mean of x given (1 - sigma) x + sigma e = `noisy` [N, D], for x from equally likely Gaussians of
    one width around `middles` [M, D]: the prediction of a perfect score network."""
    keep, level = 1 - float(sigma), float(sigma)
    variance = keep**2 * _WIDTH**2 + level**2
    shares = (-torch.cdist(noisy, keep * middles).square() / (2 * variance)).softmax(dim=1)
    center = shares @ middles
    return center + keep * _WIDTH**2 / variance * (noisy - keep * center)


def ring() -> Tensor:
    """The middles of the teacher's modes [8, 4]."""
    angles = torch.arange(_MODES) * (2 * math.pi / _MODES)
    middles = torch.zeros(_MODES, _NUMBERS)
    middles[:, 0], middles[:, 1] = _RADIUS * angles.cos(), _RADIUS * angles.sin()
    return middles


def summarize(points: Tensor) -> dict[str, float]:
    """The number of modes found, how unevenly points are shared among them (total variation), the share of points in
    none (farther than 4 widths from all), and the mean distance from the nearest."""
    distances, nearest = torch.cdist(points, ring()).min(dim=1)
    in_mode = distances < 4 * _WIDTH
    shares = torch.bincount(nearest[in_mode], minlength=_MODES) / len(points)
    return {
        "modes": int((shares > _FOUND_SHARE / _MODES).sum()),
        "uneven": round(float((shares - 1 / _MODES).abs().sum() / 2), 4),
        "astray": round(float(1 - in_mode.float().mean()), 4),
        "distance": round(float(distances.mean()), 4),
    }


def _two_modes(seed: int) -> Tensor:
    middles = ring()[: _MODES // 4].repeat(_POINTS // 2, 1)
    return middles + _WIDTH * torch.randn(middles.shape, generator=torch.Generator().manual_seed(100 + seed))


def _outliers(seed: int) -> Tensor:
    """Points like the teacher's, except one in sixteen."""
    middles = ring().repeat(_POINTS // _MODES, 1)
    points = middles + _WIDTH * torch.randn(middles.shape, generator=torch.Generator().manual_seed(200 + seed))
    points[::16] = 3 * middles[::16]
    return points


def _latents(points: Tensor) -> Tensor:
    """Points [N, 4] as the tokens of latents [1, 1, 1, h, w]."""
    return ot.from_tokens(points[None], torch.Size((1, 1, 1, 2 * _SIDE, 2 * _SIDE)))


def _points(latents: Tensor) -> Tensor:
    return ot.to_tokens(latents)[0]


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
