"""VDOT's loop: a student learns to make in a few steps what its teacher makes in many.

The fake score learns at each step what the student's samples look like at every noise level; every few steps the
student is moved to where the teacher, rather than the fake score, sees its samples go, with optimal transport between
the two predictions and a discriminator on the fake score's features. [DMD2, arXiv:2405.14867; VDOT, arXiv:2512.06802]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from training.config import Distill
from training.diffusion import seeded_random
from training.diffusion.flow_matching import clean_of, finite, guided, noised, velocity
from training.encoding.examples import Example
from training.models.assemble import Networks
from training.objectives import dmd, gan, ot, published
from training.sampling.rollout import Noise, rollout
from training.trainer.metrics import Signals
from training.trainer.optimizer import MovingAverage, Updates

# The fake score's loss is told apart by noise level, in so many parts.
_PARTS = 4


class Distillation:
    """The three networks of a run and how they learn; what random numbers it uses follow from seed and position."""

    def __init__(self, config: Distill, networks: Networks, negative: Tensor) -> None:
        """`networks.judge`: with a `gan` in the configuration. `negative`: the text of the unconditional prediction,
        [1, tokens, dim]."""
        self._config, self._negative = config, negative
        student, fake, judge = networks.student, networks.fake, networks.judge
        self.student, self._fake, self._teacher, self._judge = student, fake, networks.teacher, judge
        self.updates = {"student": Updates(student.trained(), config.student)}
        self.updates["fake"] = Updates(fake.trained(), config.critic)
        if judge is not None:
            assert config.gan is not None
            options = config.critic.model_copy(update={"lr": config.gan.lr})
            self.updates["judge"] = Updates(judge.named_parameters(), options)
        self.average = MovingAverage(student, config.average)

    def step(self, number: int, examples: Sequence[Example], signals: Signals) -> None:
        """One step, its number from 0 on, on this rank's micro-batches. Raises FloatingPointError where something is
        no number."""
        last = seeded_random.integer(self._config.schedule.steps, self._config.seed, "last", number)
        # The published trainer does half of everything at even steps, half at odd ones.
        turns = self._config.objective == "published" and self._judge is not None
        odd, even = turns and number % 2 == 1, turns and number % 2 == 0
        for example in examples:
            loss = self._critic(example, last, signals, denoise=not odd, judge=not even)
            # What a backward pass computes again must be in the same part as it was.
            self._fake.play()
            (loss / len(examples)).backward()
        self._update("fake", signals)
        if self._judge is not None and not even:
            self._update("judge", signals)
        if number % self._config.student_every:
            return
        for example in examples:
            self._student(example, last, signals, 1 / len(examples), match=not odd, judge=not even)
        self._update("student", signals)
        self.average.follow(self.updates["student"].count)

    def _critic(self, example: Example, last: int, signals: Signals, *, denoise: bool, judge: bool) -> Tensor:
        """The loss of the fake score on the student's samples, and of the discriminator on these and real clips."""
        fake = rollout(
            self.student, example.conditions, self._config.schedule, self._noise(example, "critic"), last=last
        )
        sigma, noise = self._level(example, "critic")
        at = noised(fake, noise, sigma)
        said, features = self._fake.seen(at, sigma, example.conditions)
        errors = (said - velocity(fake, noise)).square().mean(dim=(1, 2, 3, 4))
        finite("the fake score's loss", errors)
        for level, error in zip(sigma.tolist(), errors, strict=True):
            signals.add(**{f"fake/loss_{int(level * _PARTS)}": error})
        signals.add(**{"fake/loss": errors.mean()})
        loss = errors.mean() if denoise else errors.sum() * 0
        if self._judge is None or self._config.gan is None or not judge:
            return loss
        options = self._config.gan
        real_at = noised(example.clean, noise, sigma)
        real_features = self._fake.seen(real_at, sigma, example.conditions)[1]
        real_logits, fake_logits = self._judge(real_features, sigma), self._judge(features, sigma)
        adversarial = gan.discriminator_loss(fake_logits, real_logits)
        if options.smoothness:
            for name, latents, logits in (("r1", example.clean, real_logits), ("r2", fake, fake_logits)):
                moved = latents + options.noise * self._noise(example, name)(0)
                seen = self._fake.seen(noised(moved, noise, sigma), sigma, example.conditions)[1]
                disturbed = self._judge(seen, sigma)
                adversarial = adversarial + options.smoothness * gan.smoothness(
                    logits, disturbed, options.noise, seen[0].shape[1]
                )
        finite("the discriminator's loss", adversarial)
        signals.add(
            **{
                "judge/loss": adversarial,
                "judge/right": gan.share_right(fake_logits, real_logits),
                "judge/gap": (real_logits - fake_logits).mean(),
            }
        )
        weight = published.ADVERSARIAL if self._config.objective == "published" else options.critic_weight
        return loss + weight * adversarial

    def _student(
        self, example: Example, last: int, signals: Signals, share: float, *, match: bool, judge: bool
    ) -> None:
        """Add the student's gradient of one micro-batch."""
        sample = rollout(
            self.student,
            example.conditions,
            self._config.schedule,
            self._noise(example, "student"),
            last=last,
            gradient=True,
        )
        gradient = self.gradient(example, sample.detach(), signals, match=match, judge=judge)
        self.student.play()
        torch.autograd.backward(sample, gradient.mul(share))

    def gradient(
        self, example: Example, sample: Tensor, signals: Signals, *, match: bool = True, judge: bool = True
    ) -> Tensor:
        """The gradient of all objectives at the student's sample, of its shape, as `torch.autograd.backward` takes
        it."""
        config, options = self._config, self._config.gan
        sigma, noise = self._level(example, "student")
        adversary = self._judge is not None and options is not None and judge
        if adversary and options is not None and config.objective != "published":
            # Until then the discriminator learns alone.
            adversary = self.updates["student"].count >= options.start
        with torch.set_grad_enabled(adversary):
            moved = sample.clone().requires_grad_(adversary)
            at = noised(moved, noise, sigma)
            said, features = self._fake.seen(at, sigma, example.conditions)
            fake = clean_of(said, at, sigma).detach()
            at = at.detach()
        pulled = torch.zeros_like(sample)
        if adversary:
            pulled = self._adversarial(example, moved, features, sigma, signals)
        with torch.no_grad():
            conditional = self._teacher.clean(at, sigma, example.conditions)
            free = self._teacher.clean(at, sigma, example.conditions.with_text(self._negative))
            real = guided(conditional, free, config.teacher_cfg)
            finite("a score", fake, real)
            self._health(sample, example.clean, fake, real, signals)
            if config.objective == "published":
                matched = published.even_step(fake, real, sigma) if match else torch.zeros_like(sample)
                return matched + published.ADVERSARIAL * pulled
            gradient = self.matching(sample, fake, real, signals)
            if adversary and options is not None:
                scale = options.ratio * gradient.norm() / pulled.norm().clamp(min=1e-20)
                gradient = gradient + scale * pulled
        return gradient

    def matching(self, sample: Tensor, fake: Tensor, real: Tensor, signals: Signals) -> Tensor:
        """The gradient of distribution matching and transport alone, from what the fake score and the guided teacher
        make of the noised sample: all [B, 16, R + T', h, w]."""
        config = self._config
        found = ot.transported(fake, real, config.transport) if config.transport else None
        if found is not None:
            signals.add(**{f"ot/{name}": value for name, value in found.signals.items()})
        difference = ot.mixed(fake, real, found, config.transport.weight if config.transport else 0.0)
        direction = dmd.direction(difference, sample, real)
        return dmd.along(dmd.per_frame(direction) if config.objective == "per_frame" else direction)

    def _adversarial(
        self, example: Example, moved: Tensor, features: list[Tensor], sigma: Tensor, signals: Signals
    ) -> Tensor:
        """The gradient of the adversarial loss at the sample."""
        assert self._judge is not None
        with torch.no_grad():
            # Other noise than the fake's: the same would tell the discriminator which is which by their difference.
            noise = self._noise(example, "real")(0)
            real_features = self._fake.seen(noised(example.clean, noise, sigma), sigma, example.conditions)[1]
            real = self._judge(real_features, sigma)
        loss = gan.student_loss(self._judge(features, sigma), real)
        finite("the adversarial loss", loss)
        signals.add(**{"student/adversarial": loss})
        return torch.autograd.grad(loss, moved)[0]

    def _health(self, sample: Tensor, clean: Tensor, fake: Tensor, real: Tensor, signals: Signals) -> None:
        """What tells of a student that goes wrong: see docs/distillation.md."""
        signals.add(
            **{
                "student/std_ratio": sample.std() / clean.std(),
                "student/mean": sample.mean(),
                "student/largest": sample.abs().amax(),
                "student/score_gap": (fake - real).square().mean(),
            }
        )

    def _update(self, role: str, signals: Signals) -> None:
        signals.add(**{f"{role}/gradient": self.updates[role].step()})

    def _level(self, example: Example, what: str) -> tuple[Tensor, Tensor]:
        """A noise level for each clip, [B], and noise."""
        seed, position = self._config.seed, example.position
        uniform = seeded_random.uniform(len(example.clean), seed, "level", what, position)
        sigma = self._config.levels.of(uniform).to(example.clean.device)
        return sigma, self._noise(example, f"{what} level")(0)

    def _noise(self, example: Example, what: str) -> Noise:
        shape, device = example.clean.shape, example.clean.device
        return lambda step: seeded_random.normal(
            shape, device, self._config.seed, "noise", what, example.position, step
        )
