"""Flow matching: a VACE model learns, from scratch or from a checkpoint, to say where noise came from.

[Flow Matching, arXiv:2210.02747; noise levels uniform and shifted, as for the scores in distillation]
"""

from __future__ import annotations

from collections.abc import Sequence

from training.config import Teach
from training.diffusion import seeded_random
from training.diffusion.flow_matching import finite, noised, shifted, velocity
from training.encoding.examples import Example
from training.models.networks import Denoiser
from training.trainer.metrics import Signals
from training.trainer.optimizer import MovingAverage, Updates


class Teaching:
    """A network that learns from clean latents; its random numbers follow from seed and position."""

    def __init__(self, config: Teach, student: Denoiser) -> None:
        self._config, self.student = config, student
        self.updates = {"student": Updates(student.trained(), config.optimizer)}
        self.average = MovingAverage(student, config.average)

    def step(self, number: int, examples: Sequence[Example], signals: Signals) -> None:
        """One step on this rank's micro-batches. Raises FloatingPointError where something is no number."""
        seed = self._config.seed
        for example in examples:
            clean, position = example.clean, example.position
            noise = seeded_random.normal(clean.shape, clean.device, seed, "noise", position)
            uniform = seeded_random.uniform(len(clean), seed, "level", position)
            # Not 0: there is nothing to learn where there is no noise.
            sigma = shifted(uniform.clamp(min=1e-3), self._config.shift).float().to(clean.device)
            said = self.student.velocity(noised(clean, noise, sigma), sigma, example.conditions)
            loss = (said - velocity(clean, noise)).square().mean()
            finite("the loss", loss)
            signals.add(**{"student/loss": loss, f"student/loss_{example.bucket.task}": loss})
            (loss / len(examples)).backward()
        signals.add(**{"student/gradient": self.updates["student"].step()})
        self.average.follow(self.updates["student"].count)
