"""The flow that all networks are trained on: x_s = (1 - s) x + s e, from a clean latent at s = 0 to noise at s = 1.

A network predicts the velocity v = e - x at (x_s, s). [Flow Matching, arXiv:2210.02747; Wan 2.1] Latents are [B, C, T',
h, w], diffusers' order, and sigma is float [B], one value for all frames of a clip. Results are float32, whatever dtype
the network computes in.
"""

from __future__ import annotations

import torch
from torch import Tensor


def add_noise(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """The point at `sigma` between a clean latent and noise of the same shape: float32."""
    level = _expand_sigma(sigma, clean)
    return (1 - level) * clean.float() + level * noise.float()


def target_velocity(clean: Tensor, noise: Tensor) -> Tensor:
    """The velocity that a network should predict at every point between the two: float32, of their shape."""
    return noise.float() - clean.float()


def clean_from_velocity(predicted: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
    """The clean latent that a predicted velocity points to from `noisy`, the point at `sigma`: float32."""
    return noisy.float() - _expand_sigma(sigma, noisy) * predicted.float()


def apply_guidance(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance in its standard form, u + scale (c - u): 1 is no guidance. [arXiv:2207.12598]

    CausVid's and Self-Forcing's `guidance_scale` of g is a scale of g + 1 here.
    """
    return unconditional + scale * (conditional - unconditional)


def shift_times(times: Tensor, factor: float) -> Tensor:
    """Times u in [0, 1] shifted towards noise: k u / (1 + (k - 1) u), as large pictures need. [arXiv:2403.03206]"""
    return factor * times / (1 + (factor - 1) * times)


def check_finite(name: str, *values: Tensor) -> None:
    """Raises FloatingPointError if one of them has a value that is not finite."""
    if not all(bool(torch.isfinite(value).all()) for value in values):
        raise FloatingPointError(f"{name} is not finite")


def _expand_sigma(sigma: Tensor, latents: Tensor) -> Tensor:
    """`sigma` on the device of the latents and of a shape that broadcasts with them."""
    return sigma.to(latents.device, torch.float32).view(-1, *[1] * (latents.dim() - 1))
