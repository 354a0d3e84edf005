"""The released trainer's gradients, from the description of its algorithm: for comparison, not for training.

Transport is found by 60 unrolled log-domain iterations for each frame, at an absolute epsilon of 0.1 and without a
tolerance, on tokens averaged over 2 x 2 latents; its value is differentiated through all of them, and the gradient of
each frame is brought to norm 1. It is summed where DMD's is averaged, which makes it thousands of times as large.
[VDOT, arXiv:2512.06802, and its published code]
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

EPSILON, ITERATIONS = 0.1, 60
# The weights of the even steps, and the factor that transport's gradient has besides.
_DMD, TRANSPORT, FACTOR = 0.2, 0.8, 0.1
# Of the adversarial losses of the odd steps.
ADVERSARIAL = 0.1


def transport_gradient(fake: Tensor, real: Tensor) -> Tensor:
    """The gradient of the transport's cost at `fake`, float32 [B, C, T', h, w], of norm 1 for each frame."""
    with torch.enable_grad():
        moved = fake.detach().float().requires_grad_()
        frames = moved.transpose(1, 2).flatten(0, 1)
        others = real.detach().float().transpose(1, 2).flatten(0, 1)
        value = cost(_pooled(frames), _pooled(others)).sum()
        (gradient,) = torch.autograd.grad(value, moved)
    return unit(gradient)


def unit(gradient: Tensor) -> Tensor:
    """A gradient [B, C, T', h, w] whose frames are brought to norm 1, each by itself."""
    norms = gradient.square().sum(dim=(1, 3, 4), keepdim=True).sqrt()
    return gradient / norms.clamp(min=1e-12)


def cost(a: Tensor, b: Tensor) -> Tensor:
    """The cost of the plan between tokens [n, N, D] of equal mass: [n], to be differentiated through its iterations."""
    # Not squared distances from `cdist`, whose gradient at 0 is none.
    costs = a.square().sum(2)[:, :, None] + b.square().sum(2)[:, None] - 2 * a @ b.transpose(1, 2)
    mass = -math.log(a.shape[1])
    f, g = costs.new_zeros(costs.shape[:2]), costs.new_zeros(costs.shape[0], costs.shape[2])
    for _ in range(ITERATIONS):
        f = EPSILON * (mass - torch.logsumexp((g[:, None] - costs) / EPSILON, dim=2))
        g = EPSILON * (mass - torch.logsumexp((f[:, :, None] - costs) / EPSILON, dim=1))
    plan = ((f[:, :, None] + g[:, None] - costs) / EPSILON).exp()
    return (plan * costs).sum(dim=(1, 2))


def even_step(fake: Tensor, real: Tensor, sigma: Tensor) -> Tensor:
    """The gradient at the student's sample [B, C, T', h, w] of an even step, as `torch.autograd.backward` takes it:
    DMD's is weighted by the noise level [B] and averaged over all elements, transport's is summed."""
    dmd = (fake.float() - real.float()) * sigma.to(fake.device, torch.float32).view(-1, 1, 1, 1, 1)
    return _DMD * dmd / dmd.numel() + TRANSPORT * FACTOR * transport_gradient(fake, real)


def _pooled(frames: Tensor) -> Tensor:
    return functional.avg_pool2d(frames, 2).flatten(2).transpose(1, 2)
