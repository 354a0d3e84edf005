"""The flow that everything here is trained on: x_s = (1 - s) x + s e, from a clean latent at s = 0 to noise at s = 1.

A network says the velocity v = e - x at (x_s, s). [Flow Matching, arXiv:2210.02747; Wan 2.1] Latents are [B, C, T', h,
w], diffusers' order, and sigma is float [B], one for all frames of a clip. What is made of a prediction is float32,
whatever the network computes in.
"""

from __future__ import annotations

import torch
from torch import Tensor


def noised(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """The point at `sigma` between a clean latent and noise of the same shape: float32."""
    s = _each(sigma, clean)
    return (1 - s) * clean.float() + s * noise.float()


def velocity(clean: Tensor, noise: Tensor) -> Tensor:
    """What a network should say anywhere between the two: float32, of their shape."""
    return noise.float() - clean.float()


def clean_of(predicted: Tensor, at: Tensor, sigma: Tensor) -> Tensor:
    """The clean latent that a predicted velocity points to from `at`, the point at `sigma`: float32."""
    return at.float() - _each(sigma, at) * predicted.float()


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance in its standard form, u + scale (c - u): 1 is no guidance. [arXiv:2207.12598]

    CausVid's and Self-Forcing's `guidance_scale` of g is a scale of g + 1 here.
    """
    return unconditional + scale * (conditional - unconditional)


def shifted(u: Tensor, factor: float) -> Tensor:
    """Times in [0, 1] moved towards noise: k u / (1 + (k - 1) u), as large pictures want it. [arXiv:2403.03206]"""
    return factor * u / (1 + (factor - 1) * u)


def finite(name: str, *values: Tensor) -> None:
    """Raises FloatingPointError where one of them has a value that is no number."""
    if not all(bool(torch.isfinite(value).all()) for value in values):
        raise FloatingPointError(f"{name} is not finite")


def _each(sigma: Tensor, latents: Tensor) -> Tensor:
    """A value for each clip, to go with latents."""
    return sigma.to(latents.device, torch.float32).view(-1, *[1] * (latents.dim() - 1))
