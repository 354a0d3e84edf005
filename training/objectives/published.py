"""The released trainer's gradients, from the description of its algorithm: for comparison, not for training.

Transport takes 60 unrolled log-domain iterations for each frame, at an absolute epsilon of 0.1 and without a tolerance,
on tokens averaged over 2 x 2 latents; its value is differentiated through all of them, and the gradient of each frame
is normalised to 1. It is summed while DMD's is averaged, which makes it thousands of times as large.
[VDOT, arXiv:2512.06802, and its published code]
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

EPSILON, ITERATIONS = 0.1, 60
# The weights of the even steps, and an extra factor of the transport's gradient.
_DMD, TRANSPORT, FACTOR = 0.2, 0.8, 0.1
# The weight of the adversarial losses of the odd steps.
ADVERSARIAL = 0.1


def transport_gradient(fake: Tensor, real: Tensor) -> Tensor:
    """The gradient of the transport's cost at `fake`, float32 [B, C, T', h, w], with norm 1 for each frame."""
    with torch.enable_grad():
        leaf = fake.detach().float().requires_grad_()
        frames = leaf.transpose(1, 2).flatten(0, 1)
        real_frames = real.detach().float().transpose(1, 2).flatten(0, 1)
        total_cost = transport_cost(_pool(frames), _pool(real_frames)).sum()
        (gradient,) = torch.autograd.grad(total_cost, leaf)
    return normalize_frames(gradient)


def normalize_frames(gradient: Tensor) -> Tensor:
    """A gradient [B, C, T', h, w] with each frame normalised to 1."""
    norms = gradient.square().sum(dim=(1, 3, 4), keepdim=True).sqrt()
    return gradient / norms.clamp(min=1e-12)


def transport_cost(fake: Tensor, real: Tensor) -> Tensor:
    """The cost of the plan between tokens [n, N, D] of equal mass: [n], differentiable through its iterations."""
    # Not by `cdist`, which has no gradient at 0.
    costs = fake.square().sum(2)[:, :, None] + real.square().sum(2)[:, None] - 2 * fake @ real.transpose(1, 2)
    mass = -math.log(fake.shape[1])
    row_potential, column_potential = costs.new_zeros(costs.shape[:2]), costs.new_zeros(costs.shape[0], costs.shape[2])
    for _ in range(ITERATIONS):
        row_potential = EPSILON * (mass - torch.logsumexp((column_potential[:, None] - costs) / EPSILON, dim=2))
        column_potential = EPSILON * (mass - torch.logsumexp((row_potential[:, :, None] - costs) / EPSILON, dim=1))
    plan = ((row_potential[:, :, None] + column_potential[:, None] - costs) / EPSILON).exp()
    return (plan * costs).sum(dim=(1, 2))


def even_step_gradient(fake: Tensor, real: Tensor, sigma: Tensor) -> Tensor:
    """The gradient at the student's sample [B, C, T', h, w] of an even step, for `torch.autograd.backward`: DMD's is
    weighted by the noise level [B] and averaged over all elements, transport's is summed."""
    dmd_gradient = (fake.float() - real.float()) * sigma.to(fake.device, torch.float32).view(-1, 1, 1, 1, 1)
    return _DMD * dmd_gradient / dmd_gradient.numel() + TRANSPORT * FACTOR * transport_gradient(fake, real)


def _pool(frames: Tensor) -> Tensor:
    return functional.avg_pool2d(frames, 2).flatten(2).transpose(1, 2)
