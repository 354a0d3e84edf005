"""Losses, gradients and steps of the training loops, compared with the same computed by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tiny_run import DISTILL, TEACH
from torch import Tensor, nn

from pipeline.mixture.mixture import Bucket
from training.config import EMA, Distill, Optimizer, Teach, load
from training.data.stream import Stream
from training.diffusion import seeded_random
from training.diffusion.schedule import Schedule
from training.distributed import gather_full_tensor, join_world
from training.encoding.examples import CachedEncoder, Example, ExampleEncoder
from training.models import assemble
from training.models.networks import Conditions, Denoiser
from training.sampling.rollout import integrate, rollout
from training.trainer.distill import Distillation
from training.trainer.metrics import SaturationMonitor, Signals
from training.trainer.optimizer import NamedAdamW, WeightEMA
from training.trainer.teach import Teaching

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (2, 16, 3, 4, 4)
LAST = 2
"""The step at which rollouts end here."""


def draw(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def example() -> Example:
    conditions = Conditions(draw(1, (2, 8, 32)), draw(2, (2, 96, 3, 4, 4)))
    return Example(7, Bucket("films", "pose", 9, 32, 32, 0), draw(0), conditions)


def broadcast(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1, 1)


@contextmanager
def build_distilling(file: Path, model: Path) -> Iterator[tuple[Distill, assemble.Networks, Distillation]]:
    """A run's networks, with a fake score that differs from the teacher as after some training."""
    settings = load(file, Distill)
    with join_world() as world:
        networks = assemble.build_distillation(settings, model, world)
        with torch.no_grad():
            for _, parameter in networks.fake.trained_parameters():
                parameter.mul_(1.1)
        networks.fake.reshard()
        yield settings, networks, Distillation(settings, networks, torch.ones(1, 8, 32))


def sample_student(settings: Distill, networks: assemble.Networks, method: Distillation, purpose: str) -> Tensor:
    """The student's sample, as in the loop."""
    clips = example()
    with torch.no_grad():
        return rollout(
            networks.student, clips.conditions, settings.schedule, method._noise_source(clips, purpose), last=LAST
        )


def test_the_gradient_is_that_of_the_networks_predictions(model: Path, config: Any) -> None:
    with build_distilling(config(DISTILL, transport=None, gan=None), model) as (settings, networks, method):
        clips, sample = example(), draw(3)
        gradient = method.compute_gradient(clips, sample, Signals())
        with torch.no_grad():
            sigma, noise = method._draw_level(clips, "student")
            noisy = (1 - broadcast(sigma)) * sample + broadcast(sigma) * noise
            fake = noisy - broadcast(sigma) * networks.fake.predict_velocity(noisy, sigma, clips.conditions)
            conditional = noisy - broadcast(sigma) * networks.teacher.predict_velocity(noisy, sigma, clips.conditions)
            negative_conditions = clips.conditions.with_text(torch.ones(1, 8, 32))
            unconditional = noisy - broadcast(sigma) * networks.teacher.predict_velocity(
                noisy, sigma, negative_conditions
            )
    real = unconditional + settings.teacher_cfg * (conditional - unconditional)
    expected = (fake - real) / (sample - real).abs().mean(dim=(1, 2, 3, 4), keepdim=True) / sample.numel()
    assert float(expected.norm()) > 1e-4
    assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-8)


def test_the_adversarial_gradient_has_its_ratio_and_its_start(model: Path, config: Any) -> None:
    with build_distilling(config(DISTILL, gan={"ratio": 0.3, "start": 2}), model) as (_, networks, method):
        clips, sample = example(), draw(3)
        matching_gradient = method.compute_gradient(clips, sample, Signals(), discriminate=False)
        for count in (0, 1):
            method.optimizers["student"].count = count
            assert torch.equal(method.compute_gradient(clips, sample, Signals()), matching_gradient)
        method.optimizers["student"].count = 2
        adversarial_gradient = method.compute_gradient(clips, sample, Signals()) - matching_gradient
        sigma, noise = method._draw_level(clips, "student")

        def mean_logit(latents: Tensor) -> float:
            assert networks.discriminator is not None
            with torch.no_grad():
                noisy = (1 - broadcast(sigma)) * latents + broadcast(sigma) * noise
                return float(
                    networks.discriminator(
                        networks.fake.predict_with_features(noisy, sigma, clips.conditions)[1], sigma
                    ).sum()
                )

        # Against the gradient, in the direction of an optimiser step, the logit rises.
        step = sample.norm() / adversarial_gradient.norm() * 1e-2
        assert (
            mean_logit(sample - step * adversarial_gradient)
            > mean_logit(sample)
            > mean_logit(sample + step * adversarial_gradient)
        )
    assert float(adversarial_gradient.norm() / matching_gradient.norm()) == pytest.approx(0.3, rel=1e-3)
    # The direction has a scale of about 1 at every size.
    assert 0.1 < float(matching_gradient.norm() * matching_gradient.numel() ** 0.5) < 10


@pytest.mark.parametrize("smoothness", [0.0, 0.7])
def test_the_critics_loss_is_that_of_its_parts(smoothness: float, model: Path, config: Any) -> None:
    gan = {"smoothness": smoothness, "noise": 0.2, "critic_weight": 0.4}
    with build_distilling(config(DISTILL, gan=gan), model) as (settings, networks, method), torch.no_grad():
        clips = example()
        loss = method._critic_loss(clips, LAST, Signals(), denoise=True, discriminate=True)
        fake = sample_student(settings, networks, method, "critic")
        sigma, noise = method._draw_level(clips, "critic")

        def predict(latents: Tensor) -> tuple[Tensor, Tensor]:
            assert networks.discriminator is not None
            noisy = (1 - broadcast(sigma)) * latents + broadcast(sigma) * noise
            predicted, features = networks.fake.predict_with_features(noisy, sigma, clips.conditions)
            return predicted, networks.discriminator(features, sigma)

        predicted, fake_logits = predict(fake)
        real_logits = predict(clips.clean)[1]
        expected = (predicted - (noise - fake)).square().mean() + 0.4 * (
            1 + (fake_logits - real_logits).exp()
        ).log().mean()
        for name, latents, logits in (("r1", clips.clean, real_logits), ("r2", fake, fake_logits)):
            perturbed_logits = predict(latents + 0.2 * method._noise_source(clips, name)(0))[1]
            # 12 tokens: 3 frames of 2 x 2.
            penalty = 12 * (perturbed_logits - logits).square().mean() / 0.2**2
            assert penalty > 0
            expected += 0.4 * smoothness * penalty
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)


SLOW_RATES: dict[str, Any] = {name: {"lr": 1e-5, "weight_decay": 0.0} for name in ("student", "critic")}
SLOW_RATES["gan"] = DISTILL["gan"] | {"lr": 1e-5}
"""Rates so low that a step is close to its linear approximation."""


def test_a_step_moves_the_student_against_its_gradient_and_the_teacher_not_at_all(model: Path, config: Any) -> None:
    with build_distilling(config(DISTILL | SLOW_RATES), model) as (settings, networks, method):
        clips, last = example(), seeded_random.integer(settings.schedule.steps, settings.seed, "last", 0)

        def sample_once() -> Tensor:
            with torch.no_grad():
                return rollout(
                    networks.student,
                    clips.conditions,
                    settings.schedule,
                    method._noise_source(clips, "student"),
                    last=last,
                )

        teacher = [*networks.teacher.transformer.parameters()]
        frozen = [parameter.clone() for parameter in teacher]
        sample = sample_once()
        gradient = method.compute_gradient(clips, sample, Signals())
        method.step(0, [clips], Signals())
        moved = sample_once() - sample
        assert float(torch.cosine_similarity(gradient.flatten(), moved.flatten(), dim=0)) < -0.1
        assert all(map(torch.equal, frozen, teacher))


def test_adapters_move_and_what_they_adapt_does_not(model: Path, config: Any) -> None:
    with build_distilling(config(DISTILL, model={"lora_rank": 4}), model) as (_, networks, method):
        weights = dict(networks.teacher.transformer.named_parameters())
        before = {name: weight.clone() for name, weight in weights.items()}
        for number in range(2):
            method.step(number, [example()], Signals())
        moved = {name for name, weight in weights.items() if not torch.equal(weight, before[name])}
        assert moved == {name for name in weights if "lora_" in name}


def test_a_step_lowers_what_the_critics_lose(model: Path, config: Any) -> None:
    with build_distilling(config(DISTILL | SLOW_RATES), model) as (settings, _, method):
        clips, last = example(), seeded_random.integer(settings.schedule.steps, settings.seed, "last", 1)

        def critic_loss() -> float:
            with torch.no_grad():
                return float(method._critic_loss(clips, last, Signals(), denoise=True, discriminate=True))

        before = critic_loss()
        # With `student_every: 2` the student is not updated at step 1.
        method.step(1, [clips], Signals())
        assert critic_loss() < before - 1e-5


def test_a_step_of_teaching_lowers_its_loss(model: Path, config: Any) -> None:
    settings = load(config(TEACH, optimizer=SLOW_RATES["student"]), Teach)
    with join_world() as world:
        method, clips = Teaching(settings, assemble.build_teaching(settings, model, world)), example()
        noise = seeded_random.normal(SHAPE, torch.device("cpu"), settings.seed, "noise", clips.position)
        times = seeded_random.uniform(len(noise), settings.seed, "level", clips.position)
        sigma = (settings.shift * times / (1 + (settings.shift - 1) * times)).float()

        def teaching_loss() -> float:
            with torch.no_grad():
                noisy = (1 - broadcast(sigma)) * clips.clean + broadcast(sigma) * noise
                predicted = method.student.predict_velocity(noisy, sigma, clips.conditions)
                return float((predicted - (noise - clips.clean)).square().mean())

        before, signals = teaching_loss(), Signals()
        method.step(0, [clips], signals)
        assert signals.means(world)["student/loss"] == pytest.approx(before, rel=1e-5)
        assert teaching_loss() < before - 1e-5


class FakeNetwork:
    """A stand-in for a network, with known predictions."""

    def __init__(self) -> None:
        self.levels: list[float] = []

    def predict_clean(self, noisy: Tensor, sigma: Tensor, _: Conditions) -> Tensor:
        self.levels.append(float(sigma[0]))
        return 0.5 * noisy + broadcast(sigma)

    def predict_velocity(self, noisy: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        """Towards the mean of the text, on a straight line."""
        self.levels.append(float(sigma[0]))
        return (noisy - broadcast(conditions.text.mean(dim=(1, 2)))) / broadcast(sigma)


def test_a_rollout_says_a_clean_latent_and_noises_it_anew() -> None:
    network, noise_steps = FakeNetwork(), []

    def noise(step: int) -> Tensor:
        noise_steps.append(step)
        return draw(10 + step)

    sample = rollout(cast(Denoiser, network), example().conditions, Schedule(4, 5.0), noise)
    noisy = draw(10)
    for step, (sigma, following) in enumerate([(1.0, 0.9375), (0.9375, 5 / 6), (5 / 6, 0.625)], start=1):
        noisy = (1 - following) * (0.5 * noisy + sigma) + following * draw(10 + step)
    assert torch.allclose(sample, 0.5 * noisy + 0.625, atol=1e-5)
    assert noise_steps == [0, 1, 2, 3]
    assert network.levels == pytest.approx([1, 0.9375, 5 / 6, 0.625])


@pytest.mark.parametrize(("cfg", "steps"), [(1.0, 3), (1.0, 1), (4.0, 3)])
def test_a_teacher_goes_where_its_velocity_points(cfg: float, steps: int) -> None:
    network, clips, negative = FakeNetwork(), example(), torch.full((1, 8, 32), 2.0)
    sample = integrate(cast(Denoiser, network), clips.conditions, negative, draw(5), steps=steps, shift=5.0, cfg=cfg)
    # Straight lines are followed exactly in any number of steps; with guidance, to the guided mean.
    mean = broadcast(clips.conditions.text.mean(dim=(1, 2)))
    assert torch.allclose(sample, (2 + cfg * (mean - 2)).expand(SHAPE), atol=1e-4)
    assert len(network.levels) == steps * (1 if cfg == 1 else 2)


def test_a_student_that_stays_too_wide_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    monitor = SaturationMonitor()
    # A single early rollout does not count, nor do steps without an update of the student.
    for step, ratio in enumerate([*[1.0] * 20, 3.0, *[1.0] * 20, *[1.3] * 40, *[1.0] * 30, *[1.3] * 20]):
        monitor.observe(2 * step, {"student/std_ratio": ratio})
        monitor.observe(2 * step + 1, {"fake/loss": 0.1})
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert re.match(r"step \d+: over-saturation: samples spread 1\.\d\d times as far", messages[0])


def test_updates_are_clipped_and_rise() -> None:
    weight = nn.Parameter(torch.zeros(4))
    optimizer = NamedAdamW([("w", weight)], Optimizer(lr=0.1, betas=(0.0, 0.9), weight_decay=0.0, clip=2.0, warmup=3))
    for number in range(5):
        before = weight.detach().clone()
        weight.grad = torch.full((4,), 50.0)
        assert optimizer.step() == pytest.approx(100)
        # With constant gradients AdamW moves by the rate, against them.
        assert torch.allclose(before - weight, torch.full((4,), 0.1 * min(1, (number + 1) / 4)), rtol=1e-4)
    # Clipped to norm 2: four numbers of 1.
    assert torch.allclose(optimizer.tensors("r")["exp_avg_sq.r.w"], torch.full((4,), 1 - 0.9**5), rtol=1e-4)


def test_the_average_begins_as_the_weights_and_follows_slowly(model: Path, config: Any) -> None:
    with build_distilling(config(DISTILL), model) as (_, networks, _method):
        (name, weight), *_ = networks.student.trained_parameters()
        ema = WeightEMA(networks.student, EMA(decay=0.9, start=2))
        expected = math.nan
        for count, value in enumerate([1.0, 2.0, 3.0, 5.0], start=1):
            with torch.no_grad():
                weight.fill_(value)
            ema.update(count)
            expected = value if count <= 2 else 0.9 * expected + 0.1 * value
            shadow = gather_full_tensor(ema.tensors("s")[f"average.s.{name}"])
            assert torch.allclose(shadow, torch.tensor(expected)), count


def test_what_was_encoded_is_remembered_by_its_pixels() -> None:
    encoded: list[Tensor] = []

    def encode(clips: Tensor) -> Tensor:
        encoded.append(clips)
        return clips.mean(dim=1, keepdim=True).repeat(1, 16, 1, 1, 1)

    clips, bytes_per_clip = draw(0, (3, 3, 5, 4, 4)), 16 * 5 * 4 * 4 * 4
    cached = CachedEncoder(encode, 3 * bytes_per_clip)
    for _ in range(2):
        assert torch.equal(cached(clips[:2].clone()), encode(clips[:2]))
    # The same numbers in another shape are a different clip.
    reshaped = clips[1:2].reshape(1, 3, 4, 5, 4)
    assert torch.equal(cached(reshaped), encode(reshaped))
    # Clips are encoded one by one, plus the calls of the test itself.
    assert [len(batch) for batch in encoded] == [1, 1, 2, 2, 1, 1]
    # A set that exceeds the limit is not cached.
    for _ in range(2):
        encoded.clear()
        assert torch.equal(cached(clips), encode(clips))
    assert [len(batch) for batch in encoded] == [1, 1, 1, 3]


def test_all_of_an_example_is_on_the_runs_device(model: Path, mixture: Path, config: Any) -> None:
    settings = load(config(TEACH), Teach)
    example_encoder = ExampleEncoder(model, settings.model, settings.data, torch.device("cpu"))
    # A stand-in for a GPU: its tensors cannot be combined with tensors on the CPU.
    example_encoder._device = torch.device("meta")
    tasks = set()
    for batch in chain.from_iterable(islice(Stream(mixture), 24)):
        # As it is, and as for tasks with only text or references.
        for variant in (batch, replace(batch, arrays={"clip": batch.arrays["clip"]})):
            example = example_encoder(variant)
            assert (example.clean.device.type, example.conditions.context.device.type) == ("meta", "meta")
        tasks.add(batch.bucket.task)
    assert len(tasks) >= 5
