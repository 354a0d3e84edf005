"""VDOT's loop: a student learns to make in a few steps what its teacher makes in many.

The fake score learns at each step to denoise the student's samples at every noise level. Every few steps the student is
moved towards the teacher's prediction and away from the fake score's, with optimal transport between the two and a
discriminator on the fake score's features. [DMD2, arXiv:2405.14867; VDOT, arXiv:2512.06802]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from training.config import Distill
from training.diffusion import seeded_random
from training.diffusion.flow_matching import (
    add_noise,
    apply_guidance,
    check_finite,
    clean_from_velocity,
    target_velocity,
)
from training.encoding.examples import Example
from training.models.assemble import Networks
from training.objectives import dmd, gan, ot, published
from training.sampling.rollout import Noise, rollout
from training.trainer.metrics import Signals
from training.trainer.optimizer import NamedAdamW, WeightEMA

# The fake score's loss is also logged by noise level, in this many bins.
_LEVEL_BINS = 4


class Distillation:
    """Trains the networks of a run; random numbers follow from the seed and the position."""

    def __init__(self, config: Distill, networks: Networks, negative: Tensor) -> None:
        """`networks.discriminator`: given if the configuration has a `gan`. `negative`: the text of the unconditional
        prediction, [1, tokens, dim]."""
        self._config, self._negative = config, negative
        student, discriminator = networks.student, networks.discriminator
        self.student, self._fake_score = student, networks.fake
        self._teacher, self._discriminator = networks.teacher, discriminator
        self.optimizers = {"student": NamedAdamW(student.trained_parameters(), config.student)}
        self.optimizers["fake"] = NamedAdamW(networks.fake.trained_parameters(), config.critic)
        if discriminator is not None:
            assert config.gan is not None
            options = config.critic.model_copy(update={"lr": config.gan.lr})
            self.optimizers["judge"] = NamedAdamW(discriminator.named_parameters(), options)
        self.ema = WeightEMA(student, config.average)

    def step(self, number: int, examples: Sequence[Example], signals: Signals) -> None:
        """One step on this rank's micro-batches; numbers start at 0. Raises FloatingPointError if a loss or prediction
        is not finite."""
        last = seeded_random.integer(self._config.schedule.steps, self._config.seed, "last", number)
        # The published trainer alternates: denoising and matching at even steps, adversarial losses at odd ones.
        alternating = self._config.objective == "published" and self._discriminator is not None
        odd, even = alternating and number % 2 == 1, alternating and number % 2 == 0
        for example in examples:
            loss = self._critic_loss(example, last, signals, denoise=not odd, discriminate=not even)
            # Activation checkpointing recomputes with the active adapter: it must be that of the forward pass.
            self._fake_score.activate_adapter()
            (loss / len(examples)).backward()
        self._step_optimizer("fake", signals)
        if self._discriminator is not None and not even:
            self._step_optimizer("judge", signals)
        if number % self._config.student_every:
            return
        for example in examples:
            self._backpropagate_student(example, last, signals, 1 / len(examples), match=not odd, discriminate=not even)
        self._step_optimizer("student", signals)
        self.ema.update(self.optimizers["student"].count)

    def _critic_loss(
        self, example: Example, last: int, signals: Signals, *, denoise: bool, discriminate: bool
    ) -> Tensor:
        """The fake score's loss on the student's samples, plus the discriminator's on these and real clips."""
        student_sample = rollout(
            self.student, example.conditions, self._config.schedule, self._noise_source(example, "critic"), last=last
        )
        sigma, noise = self._draw_level(example, "critic")
        noisy = add_noise(student_sample, noise, sigma)
        predicted, features = self._fake_score.predict_with_features(noisy, sigma, example.conditions)
        errors = (predicted - target_velocity(student_sample, noise)).square().mean(dim=(1, 2, 3, 4))
        check_finite("the fake score's loss", errors)
        for level, error in zip(sigma.tolist(), errors, strict=True):
            signals.add(**{f"fake/loss_{int(level * _LEVEL_BINS)}": error})
        signals.add(**{"fake/loss": errors.mean()})
        loss = errors.mean() if denoise else errors.sum() * 0
        if self._discriminator is None or self._config.gan is None or not discriminate:
            return loss
        options = self._config.gan
        real_noisy = add_noise(example.clean, noise, sigma)
        real_clip_features = self._fake_score.predict_with_features(real_noisy, sigma, example.conditions)[1]
        real_logits, fake_logits = self._discriminator(real_clip_features, sigma), self._discriminator(features, sigma)
        adversarial = gan.discriminator_loss(fake_logits, real_logits)
        if options.smoothness:
            for name, latents, logits in (("r1", example.clean, real_logits), ("r2", student_sample, fake_logits)):
                perturbed = latents + options.noise * self._noise_source(example, name)(0)
                perturbed_features = self._fake_score.predict_with_features(
                    add_noise(perturbed, noise, sigma), sigma, example.conditions
                )[1]
                perturbed_logits = self._discriminator(perturbed_features, sigma)
                adversarial = adversarial + options.smoothness * gan.gradient_penalty(
                    logits, perturbed_logits, options.noise, perturbed_features[0].shape[1]
                )
        check_finite("the discriminator's loss", adversarial)
        signals.add(
            **{
                "judge/loss": adversarial,
                "judge/right": gan.discriminator_accuracy(fake_logits, real_logits),
                "judge/gap": (real_logits - fake_logits).mean(),
            }
        )
        weight = published.ADVERSARIAL if self._config.objective == "published" else options.critic_weight
        return loss + weight * adversarial

    def _backpropagate_student(
        self, example: Example, last: int, signals: Signals, share: float, *, match: bool, discriminate: bool
    ) -> None:
        """Accumulate the student's gradient of one micro-batch."""
        sample = rollout(
            self.student,
            example.conditions,
            self._config.schedule,
            self._noise_source(example, "student"),
            last=last,
            gradient=True,
        )
        gradient = self.compute_gradient(example, sample.detach(), signals, match=match, discriminate=discriminate)
        self.student.activate_adapter()
        torch.autograd.backward(sample, gradient.mul(share))

    def compute_gradient(
        self, example: Example, sample: Tensor, signals: Signals, *, match: bool = True, discriminate: bool = True
    ) -> Tensor:
        """The gradient of all objectives at the student's sample, in its shape, for `torch.autograd.backward`."""
        config, options = self._config, self._config.gan
        sigma, noise = self._draw_level(example, "student")
        adversarial = self._discriminator is not None and options is not None and discriminate
        if adversarial and options is not None and config.objective != "published":
            # Until then only the discriminator learns.
            adversarial = self.optimizers["student"].count >= options.start
        with torch.set_grad_enabled(adversarial):
            leaf = sample.clone().requires_grad_(adversarial)
            noisy = add_noise(leaf, noise, sigma)
            predicted, features = self._fake_score.predict_with_features(noisy, sigma, example.conditions)
            fake_score_prediction = clean_from_velocity(predicted, noisy, sigma).detach()
            noisy = noisy.detach()
        adversarial_gradient = torch.zeros_like(sample)
        if adversarial:
            adversarial_gradient = self._adversarial_gradient(example, leaf, features, sigma, signals)
        with torch.no_grad():
            conditional = self._teacher.predict_clean(noisy, sigma, example.conditions)
            unconditional = self._teacher.predict_clean(noisy, sigma, example.conditions.with_text(self._negative))
            teacher_prediction = apply_guidance(conditional, unconditional, config.teacher_cfg)
            check_finite("a score", fake_score_prediction, teacher_prediction)
            self._record_health(sample, example.clean, fake_score_prediction, teacher_prediction, signals)
            if config.objective == "published":
                matching = (
                    published.even_step_gradient(fake_score_prediction, teacher_prediction, sigma)
                    if match
                    else torch.zeros_like(sample)
                )
                return matching + published.ADVERSARIAL * adversarial_gradient
            gradient = self.matching_gradient(sample, fake_score_prediction, teacher_prediction, signals)
            if adversarial and options is not None:
                scale = options.ratio * gradient.norm() / adversarial_gradient.norm().clamp(min=1e-20)
                gradient = gradient + scale * adversarial_gradient
        return gradient

    def matching_gradient(
        self, sample: Tensor, fake_score_prediction: Tensor, teacher_prediction: Tensor, signals: Signals
    ) -> Tensor:
        """The gradient of distribution matching and transport alone, from the clean latents that the fake score and the
        guided teacher predict from the noised sample: all [B, 16, R + T', h, w]."""
        config = self._config
        transport = (
            ot.compute_transport(fake_score_prediction, teacher_prediction, config.transport)
            if config.transport
            else None
        )
        if transport is not None:
            signals.add(**{f"ot/{name}": value for name, value in transport.signals.items()})
        difference = ot.mix_residual(
            fake_score_prediction, teacher_prediction, transport, config.transport.weight if config.transport else 0.0
        )
        direction = dmd.direction(difference, sample, teacher_prediction)
        return dmd.as_gradient(dmd.equalize_frames(direction) if config.objective == "per_frame" else direction)

    def _adversarial_gradient(
        self, example: Example, leaf: Tensor, features: list[Tensor], sigma: Tensor, signals: Signals
    ) -> Tensor:
        """The gradient of the adversarial loss at the sample."""
        assert self._discriminator is not None
        with torch.no_grad():
            # Other noise than the sample's: with the same noise the difference of a pair would give the sample away.
            noise = self._noise_source(example, "real")(0)
            real_clip_features = self._fake_score.predict_with_features(
                add_noise(example.clean, noise, sigma), sigma, example.conditions
            )[1]
            real_logits = self._discriminator(real_clip_features, sigma)
        loss = gan.student_loss(self._discriminator(features, sigma), real_logits)
        check_finite("the adversarial loss", loss)
        signals.add(**{"student/adversarial": loss})
        return torch.autograd.grad(loss, leaf)[0]

    def _record_health(
        self, sample: Tensor, clean: Tensor, fake_score_prediction: Tensor, teacher_prediction: Tensor, signals: Signals
    ) -> None:
        """Signals that show when a student goes wrong: see docs/distillation.md."""
        signals.add(
            **{
                "student/std_ratio": sample.std() / clean.std(),
                "student/mean": sample.mean(),
                "student/largest": sample.abs().amax(),
                "student/score_gap": (fake_score_prediction - teacher_prediction).square().mean(),
            }
        )

    def _step_optimizer(self, role: str, signals: Signals) -> None:
        signals.add(**{f"{role}/gradient": self.optimizers[role].step()})

    def _draw_level(self, example: Example, purpose: str) -> tuple[Tensor, Tensor]:
        """A noise level for each clip, [B], and noise."""
        seed, position = self._config.seed, example.position
        uniform = seeded_random.uniform(len(example.clean), seed, "level", purpose, position)
        sigma = self._config.levels.from_uniform(uniform).to(example.clean.device)
        return sigma, self._noise_source(example, f"{purpose} level")(0)

    def _noise_source(self, example: Example, purpose: str) -> Noise:
        shape, device = example.clean.shape, example.clean.device
        return lambda step: seeded_random.normal(
            shape, device, self._config.seed, "noise", purpose, example.position, step
        )
