"""Distribution matching: moves the student towards the teacher's prediction and away from the fake score's.

    g = (fake - real) / mean |student - real|                     [DMD2, arXiv:2405.14867]

A gradient at the student's sample, not through the networks that predict.
"""

from __future__ import annotations

from torch import Tensor

# A lower bound of the scale: below it the predictions are equal, and no scale would matter.
_MIN_SCALE = 1e-6


def direction(difference: Tensor, student: Tensor, real: Tensor) -> Tensor:
    """The direction away from the student's target: difference / mean |student - real|, float32 [B, C, T', h, w].

    `difference`: the fake score's prediction from the noised sample minus its target, for plain DMD `real`, the guided
    teacher's prediction. All are clean latents of one shape. The mean is over everything but the batch, so that the
    gradient means the same at every resolution and noise level.
    """
    scale = (student.float() - real.float()).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
    return difference.float() / scale.clamp(min=_MIN_SCALE)


def as_gradient(direction: Tensor) -> Tensor:
    """A direction as a gradient at the student's sample, for `torch.autograd.backward`: divided by its element count.

    It is the gradient of half the mean square distance to a constant `student - direction`, a loss whose value says
    nothing about progress.
    """
    return direction / direction.numel()


def equalize_frames(gradient: Tensor) -> Tensor:
    """A gradient [B, C, T', h, w] rescaled so that all frames have the same norm, with the total norm unchanged: the
    effect of VDOT's transport term on DMD when its plan is the identity, and so its control."""
    frame_norms = gradient.square().sum(dim=(1, 3, 4), keepdim=True).sqrt()
    norm = gradient.square().sum(dim=(1, 2, 3, 4), keepdim=True).sqrt()
    return gradient / frame_norms.clamp(min=1e-12) * norm / gradient.shape[2] ** 0.5
