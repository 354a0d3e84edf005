"""The control of the published transport: its gradient with the identity as plan."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from training.objectives.published import FACTOR, TRANSPORT, normalize_frames
from training.trainer.distill import Distillation
from training.trainer.metrics import Signals


class PooledDistillation(Distillation):
    """DMD of latents that are averaged over 2 x 2 and scaled to norm 1 in each frame, as the published transport does.

    The published DMD term is thousands of times smaller than this gradient and is left out.
    """

    def matching_gradient(
        self, sample: Tensor, fake_score_prediction: Tensor, teacher_prediction: Tensor, signals: Signals
    ) -> Tensor:
        """The gradient [B, 16, T', h, w]."""
        frames = (fake_score_prediction - teacher_prediction).transpose(1, 2)
        pooled = functional.avg_pool2d(frames.flatten(0, 1), 2).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        return TRANSPORT * FACTOR * normalize_frames(pooled.unflatten(0, frames.shape[:2]).transpose(1, 2))
