"""Flow matching: a VACE model learns, from scratch or from a checkpoint, to predict the velocity of noised latents.

[Flow Matching, arXiv:2210.02747; noise levels uniform and shifted, as for the scores in distillation]
"""

from __future__ import annotations

from collections.abc import Sequence

from training.config import Teach
from training.diffusion import seeded_random
from training.diffusion.flow_matching import add_noise, check_finite, shift_times, target_velocity
from training.encoding.examples import Example
from training.models.networks import Denoiser
from training.trainer.metrics import Signals
from training.trainer.optimizer import NamedAdamW, WeightEMA


class Teaching:
    """Trains a network on clean latents; random numbers follow from the seed and the position."""

    def __init__(self, config: Teach, student: Denoiser) -> None:
        self._config, self.student = config, student
        self.optimizers = {"student": NamedAdamW(student.trained_parameters(), config.optimizer)}
        self.ema = WeightEMA(student, config.average)

    def step(self, number: int, examples: Sequence[Example], signals: Signals) -> None:
        """One step on this rank's micro-batches. Raises FloatingPointError if the loss is not finite."""
        seed = self._config.seed
        for example in examples:
            clean, position = example.clean, example.position
            noise = seeded_random.normal(clean.shape, clean.device, seed, "noise", position)
            times = seeded_random.uniform(len(clean), seed, "level", position)
            # Not 0: without noise there is nothing to learn.
            sigma = shift_times(times.clamp(min=1e-3), self._config.shift).float().to(clean.device)
            predicted = self.student.predict_velocity(add_noise(clean, noise, sigma), sigma, example.conditions)
            loss = (predicted - target_velocity(clean, noise)).square().mean()
            check_finite("the loss", loss)
            signals.add(**{"student/loss": loss, f"student/loss_{example.bucket.task}": loss})
            (loss / len(examples)).backward()
        signals.add(**{"student/gradient": self.optimizers["student"].step()})
        self.ema.update(self.optimizers["student"].count)
