"""Distribution matching: the student is pulled to where the teacher, rather than the fake score, sees its samples go.

    g = (fake - real) / mean |student - real|                     [DMD2, arXiv:2405.14867]

A gradient at the student's sample, not through the networks that made it.
"""

from __future__ import annotations

from torch import Tensor

# Below it two predictions are the same, whatever was divided by.
_LEAST = 1e-6


def direction(difference: Tensor, student: Tensor, real: Tensor) -> Tensor:
    """Away from where the student's sample is to go, float32 [B, C, T', h, w]: difference / mean |student - real|.

    `difference` is what the fake score makes of the noised sample less what it should have made, for plain DMD less
    `real`, what the guided teacher makes of it. All are clean latents of one shape. The mean is over everything but the
    batch, so that the gradient means the same at every resolution and noise level.
    """
    scale = (student.float() - real.float()).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
    return difference.float() / scale.clamp(min=_LEAST)


def along(direction: Tensor) -> Tensor:
    """A direction as `torch.autograd.backward` takes it at the student's sample: over the number of its elements.

    It is the gradient of half the mean square distance to `student - direction` held still, a loss whose value says
    nothing about progress.
    """
    return direction / direction.numel()


def per_frame(gradient: Tensor) -> Tensor:
    """A gradient [B, C, T', h, w] whose frames all have the same norm, and whose whole has the norm that it had: what
    VDOT's transport term does to DMD where its plan is the identity, and so the control for it."""
    frames = gradient.square().sum(dim=(1, 3, 4), keepdim=True).sqrt()
    together = gradient.square().sum(dim=(1, 2, 3, 4), keepdim=True).sqrt()
    return gradient / frames.clamp(min=1e-12) * together / gradient.shape[2] ** 0.5
