"""The adversarial loss: each sample against the real clip of the same condition, and what keeps the judge smooth.

    student: softplus(D(real) - D(fake))      discriminator: softplus(D(fake) - D(real))
    [relativistic pairs: arXiv:1807.00734, and "R3GAN", arXiv:2501.05441]

Logits are [B] or [B, 1], float32, one for a clip; losses are means over the batch, 0.69 where it cannot tell.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def student_loss(fake: Tensor, real: Tensor) -> Tensor:
    """How far the discriminator sees fakes below the real clips: a scalar."""
    return functional.softplus(real.detach() - fake).mean()


def discriminator_loss(fake: Tensor, real: Tensor) -> Tensor:
    """How far it does not: a scalar."""
    return functional.softplus(fake - real).mean()


def smoothness(logits: Tensor, disturbed: Tensor, noise: float, tokens: int) -> Tensor:
    """What stands in for the squared norm of the discriminator's gradient (R1 on real clips, R2 on fakes): a scalar.

    tokens E |D(x + noise e) - D(x)|^2 / noise^2, which needs no second derivative. [approximate R1: APT,
    arXiv:2501.08316] Divided, so that a weight does not depend on the noise; multiplied by the clip's tokens, so that
    it means the same at every resolution: what is judged by the mean of N tokens has a gradient of 1/N at each, and the
    sum of its squares is 1/N.
    """
    return tokens * (disturbed - logits).square().mean() / noise**2


def share_right(fake: Tensor, real: Tensor) -> Tensor:
    """The share of pairs that the discriminator tells apart, in [0, 1]: a scalar without gradient."""
    return (real > fake).float().mean().detach()
