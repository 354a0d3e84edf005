"""The adversarial loss: each sample against the real clip of the same condition, and the discriminator's penalty.

    student: softplus(D(real) - D(fake))      discriminator: softplus(D(fake) - D(real))
    [relativistic pairs: arXiv:1807.00734, and "R3GAN", arXiv:2501.05441]

Logits are [B] or [B, 1], float32, one for a clip; losses are means over the batch, 0.69 at chance.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def student_loss(fake_logits: Tensor, real_logits: Tensor) -> Tensor:
    """The student's loss, which rises as the discriminator rates fakes below real clips: a scalar."""
    return functional.softplus(real_logits.detach() - fake_logits).mean()


def discriminator_loss(fake_logits: Tensor, real_logits: Tensor) -> Tensor:
    """The discriminator's loss, which rises as it rates fakes above real clips: a scalar."""
    return functional.softplus(fake_logits - real_logits).mean()


def gradient_penalty(logits: Tensor, perturbed_logits: Tensor, noise: float, tokens: int) -> Tensor:
    """An approximation of the squared norm of the discriminator's gradient (R1 on real clips, R2 on fakes): a scalar.

    tokens E |D(x + noise e) - D(x)|^2 / noise^2, which needs no second derivative. [approximate R1: APT,
    arXiv:2501.08316] Division by noise^2 makes a weight independent of the noise; multiplication by the clip's tokens
    makes it mean the same at every resolution: a mean over N tokens has a gradient of 1/N at each, and the sum of its
    squares is 1/N.
    """
    return tokens * (perturbed_logits - logits).square().mean() / noise**2


def discriminator_accuracy(fake_logits: Tensor, real_logits: Tensor) -> Tensor:
    """The share of pairs in which the real clip has the higher logit, in [0, 1]: a scalar without gradient."""
    return (real_logits > fake_logits).float().mean().detach()
