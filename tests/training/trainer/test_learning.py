"""What learns goes where it should: losses, gradients and steps of the loops beside the same written out by hand."""

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
from training.config import Average, Distill, Optimizer, Teach, load
from training.data.stream import Stream
from training.diffusion import seeded_random
from training.diffusion.schedule import Schedule
from training.distributed import whole, world
from training.encoding.examples import Example, Examples, Remembered
from training.models import assemble
from training.models.networks import Conditions, Denoiser
from training.sampling.rollout import integrate, rollout
from training.trainer.distill import Distillation
from training.trainer.metrics import Saturation, Signals
from training.trainer.optimizer import MovingAverage, Updates
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


def each(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1, 1)


@contextmanager
def distilling(file: Path, model: Path) -> Iterator[tuple[Distill, assemble.Networks, Distillation]]:
    """A run's networks, of which the fake score is another network than the teacher, as it soon is."""
    told = load(file, Distill)
    with world() as here:
        networks = assemble.distillation(told, model, here)
        with torch.no_grad():
            for _, parameter in networks.fake.trained():
                parameter.mul_(1.1)
        networks.fake.changed()
        yield told, networks, Distillation(told, networks, torch.ones(1, 8, 32))


def sampled(told: Distill, networks: assemble.Networks, method: Distillation, what: str) -> Tensor:
    """The student's sample, as the loop makes it."""
    one = example()
    with torch.no_grad():
        return rollout(networks.student, one.conditions, told.schedule, method._noise(one, what), last=LAST)


def test_the_gradient_is_that_of_the_networks_predictions(model: Path, config: Any) -> None:
    with distilling(config(DISTILL, transport=None, gan=None), model) as (told, networks, method):
        one, sample = example(), draw(3)
        found = method.gradient(one, sample, Signals())
        with torch.no_grad():
            sigma, noise = method._level(one, "student")
            at = (1 - each(sigma)) * sample + each(sigma) * noise
            fake = at - each(sigma) * networks.fake.velocity(at, sigma, one.conditions)
            asked = at - each(sigma) * networks.teacher.velocity(at, sigma, one.conditions)
            without = one.conditions.with_text(torch.ones(1, 8, 32))
            free = at - each(sigma) * networks.teacher.velocity(at, sigma, without)
    real = free + told.teacher_cfg * (asked - free)
    wanted = (fake - real) / (sample - real).abs().mean(dim=(1, 2, 3, 4), keepdim=True) / sample.numel()
    assert float(wanted.norm()) > 1e-4
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-8)


def test_the_adversarial_gradient_has_its_ratio_and_its_start(model: Path, config: Any) -> None:
    with distilling(config(DISTILL, gan={"ratio": 0.3, "start": 2}), model) as (_, networks, method):
        one, sample = example(), draw(3)
        alone = method.gradient(one, sample, Signals(), judge=False)
        for updates in (0, 1):
            method.updates["student"].count = updates
            assert torch.equal(method.gradient(one, sample, Signals()), alone)
        method.updates["student"].count = 2
        added = method.gradient(one, sample, Signals()) - alone
        sigma, noise = method._level(one, "student")

        def judged(latents: Tensor) -> float:
            assert networks.judge is not None
            with torch.no_grad():
                at = (1 - each(sigma)) * latents + each(sigma) * noise
                return float(networks.judge(networks.fake.seen(at, sigma, one.conditions)[1], sigma).sum())

        # Against the gradient, as an optimiser goes, the sample seems more real.
        step = sample.norm() / added.norm() * 1e-2
        assert judged(sample - step * added) > judged(sample) > judged(sample + step * added)
    assert float(added.norm() / alone.norm()) == pytest.approx(0.3, rel=1e-3)
    # Mean 1 of what a direction is over: the same at every size.
    assert 0.1 < float(alone.norm() * alone.numel() ** 0.5) < 10


@pytest.mark.parametrize("smoothness", [0.0, 0.7])
def test_the_critics_loss_is_that_of_its_parts(smoothness: float, model: Path, config: Any) -> None:
    gan = {"smoothness": smoothness, "noise": 0.2, "critic_weight": 0.4}
    with distilling(config(DISTILL, gan=gan), model) as (told, networks, method), torch.no_grad():
        one = example()
        found = method._critic(one, LAST, Signals(), denoise=True, judge=True)
        fake = sampled(told, networks, method, "critic")
        sigma, noise = method._level(one, "critic")

        def seen(latents: Tensor) -> tuple[Tensor, Tensor]:
            assert networks.judge is not None
            at = (1 - each(sigma)) * latents + each(sigma) * noise
            said, features = networks.fake.seen(at, sigma, one.conditions)
            return said, networks.judge(features, sigma)

        said, of_fake = seen(fake)
        of_real = seen(one.clean)[1]
        wanted = (said - (noise - fake)).square().mean() + 0.4 * (1 + (of_fake - of_real).exp()).log().mean()
        for name, latents, logits in (("r1", one.clean, of_real), ("r2", fake, of_fake)):
            moved = seen(latents + 0.2 * method._noise(one, name)(0))[1]
            # Of 3 frames of 2 x 2 tokens.
            slope = 12 * (moved - logits).square().mean() / 0.2**2
            assert slope > 0
            wanted += 0.4 * smoothness * slope
    assert float(found) == pytest.approx(float(wanted), rel=1e-4)


SLOWLY: dict[str, Any] = {name: {"lr": 1e-5, "weight_decay": 0.0} for name in ("student", "critic")}
SLOWLY["gan"] = DISTILL["gan"] | {"lr": 1e-5}
"""Rates at which a step is as small as a derivative asks for."""


def test_a_step_moves_the_student_against_its_gradient_and_the_teacher_not_at_all(model: Path, config: Any) -> None:
    with distilling(config(DISTILL | SLOWLY), model) as (told, networks, method):
        one, last = example(), seeded_random.integer(told.schedule.steps, told.seed, "last", 0)

        def made() -> Tensor:
            with torch.no_grad():
                return rollout(
                    networks.student, one.conditions, told.schedule, method._noise(one, "student"), last=last
                )

        teacher = [*networks.teacher.transformer.parameters()]
        frozen = [parameter.clone() for parameter in teacher]
        sample = made()
        gradient = method.gradient(one, sample, Signals())
        method.step(0, [one], Signals())
        moved = made() - sample
        assert float(torch.cosine_similarity(gradient.flatten(), moved.flatten(), dim=0)) < -0.1
        assert all(map(torch.equal, frozen, teacher))


def test_adapters_move_and_what_they_adapt_does_not(model: Path, config: Any) -> None:
    with distilling(config(DISTILL, model={"lora_rank": 4}), model) as (_, networks, method):
        weights = dict(networks.teacher.transformer.named_parameters())
        before = {name: weight.clone() for name, weight in weights.items()}
        for number in range(2):
            method.step(number, [example()], Signals())
        moved = {name for name, weight in weights.items() if not torch.equal(weight, before[name])}
        assert moved == {name for name in weights if "lora_" in name}


def test_a_step_lowers_what_the_critics_lose(model: Path, config: Any) -> None:
    with distilling(config(DISTILL | SLOWLY), model) as (told, _, method):
        one, last = example(), seeded_random.integer(told.schedule.steps, told.seed, "last", 1)

        def lost() -> float:
            with torch.no_grad():
                return float(method._critic(one, last, Signals(), denoise=True, judge=True))

        before = lost()
        # Of every two steps the student learns at the other.
        method.step(1, [one], Signals())
        assert lost() < before - 1e-5


def test_a_step_of_teaching_lowers_its_loss(model: Path, config: Any) -> None:
    told = load(config(TEACH, optimizer=SLOWLY["student"]), Teach)
    with world() as here:
        method, one = Teaching(told, assemble.teaching(told, model, here)), example()
        noise = seeded_random.normal(SHAPE, torch.device("cpu"), told.seed, "noise", one.position)
        u = seeded_random.uniform(len(noise), told.seed, "level", one.position)
        sigma = (told.shift * u / (1 + (told.shift - 1) * u)).float()

        def lost() -> float:
            with torch.no_grad():
                at = (1 - each(sigma)) * one.clean + each(sigma) * noise
                said = method.student.velocity(at, sigma, one.conditions)
                return float((said - (noise - one.clean)).square().mean())

        before, signals = lost(), Signals()
        method.step(0, [one], signals)
        assert signals.means(here)["student/loss"] == pytest.approx(before, rel=1e-5)
        assert lost() < before - 1e-5


class Known:
    """In a network's place: what it says is written here."""

    def __init__(self) -> None:
        self.levels: list[float] = []

    def clean(self, noisy: Tensor, sigma: Tensor, _: Conditions) -> Tensor:
        self.levels.append(float(sigma[0]))
        return 0.5 * noisy + each(sigma)

    def velocity(self, noisy: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        """To the mean of the text, on a straight line."""
        self.levels.append(float(sigma[0]))
        return (noisy - each(conditions.text.mean(dim=(1, 2)))) / each(sigma)


def test_a_rollout_says_a_clean_latent_and_noises_it_anew() -> None:
    known, asked = Known(), []

    def noise(step: int) -> Tensor:
        asked.append(step)
        return draw(10 + step)

    found = rollout(cast(Denoiser, known), example().conditions, Schedule(4, 5.0), noise)
    at = draw(10)
    for step, (sigma, following) in enumerate([(1.0, 0.9375), (0.9375, 5 / 6), (5 / 6, 0.625)], start=1):
        at = (1 - following) * (0.5 * at + sigma) + following * draw(10 + step)
    assert torch.allclose(found, 0.5 * at + 0.625, atol=1e-5)
    assert asked == [0, 1, 2, 3]
    assert known.levels == pytest.approx([1, 0.9375, 5 / 6, 0.625])


@pytest.mark.parametrize(("cfg", "steps"), [(1.0, 3), (1.0, 1), (4.0, 3)])
def test_a_teacher_goes_where_its_velocity_points(cfg: float, steps: int) -> None:
    known, one, negative = Known(), example(), torch.full((1, 8, 32), 2.0)
    found = integrate(cast(Denoiser, known), one.conditions, negative, draw(5), steps=steps, shift=5.0, cfg=cfg)
    # Straight lines are followed exactly, in however many steps: guided, to where guidance lies.
    mean = each(one.conditions.text.mean(dim=(1, 2)))
    assert torch.allclose(found, (2 + cfg * (mean - 2)).expand(SHAPE), atol=1e-4)
    assert len(known.levels) == steps * (1 if cfg == 1 else 2)


def test_a_student_that_stays_too_wide_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    saturation = Saturation()
    # One rollout that ends early says nothing; steps without an update of the student neither.
    for step, ratio in enumerate([*[1.0] * 20, 3.0, *[1.0] * 20, *[1.3] * 40, *[1.0] * 30, *[1.3] * 20]):
        saturation.look(2 * step, {"student/std_ratio": ratio})
        saturation.look(2 * step + 1, {"fake/loss": 0.1})
    found = [one.getMessage() for one in caplog.records]
    assert len(found) == 2
    assert re.match(r"step \d+: over-saturation: samples spread 1\.\d\d times as far", found[0])


def test_updates_are_clipped_and_rise() -> None:
    weight = nn.Parameter(torch.zeros(4))
    updates = Updates([("w", weight)], Optimizer(lr=0.1, betas=(0.0, 0.9), weight_decay=0.0, clip=2.0, warmup=3))
    for number in range(5):
        before = weight.detach().clone()
        weight.grad = torch.full((4,), 50.0)
        assert updates.step() == pytest.approx(100)
        # AdamW moves by the rate where gradients stay the same, against them.
        assert torch.allclose(before - weight, torch.full((4,), 0.1 * min(1, (number + 1) / 4)), rtol=1e-4)
    # Of norm 2, as four numbers: 1 each.
    assert torch.allclose(updates.tensors("r")["exp_avg_sq.r.w"], torch.full((4,), 1 - 0.9**5), rtol=1e-4)


def test_the_average_begins_as_the_weights_and_follows_slowly(model: Path, config: Any) -> None:
    with distilling(config(DISTILL), model) as (_, networks, _method):
        (name, weight), *_ = networks.student.trained()
        average = MovingAverage(networks.student, Average(decay=0.9, start=2))
        wanted = math.nan
        for updates, value in enumerate([1.0, 2.0, 3.0, 5.0], start=1):
            with torch.no_grad():
                weight.fill_(value)
            average.follow(updates)
            wanted = value if updates <= 2 else 0.9 * wanted + 0.1 * value
            found = whole(average.tensors("s")[f"average.s.{name}"])
            assert torch.allclose(found, torch.tensor(wanted)), updates


def test_what_was_encoded_is_remembered_by_its_pixels() -> None:
    asked: list[Tensor] = []

    def encode(clips: Tensor) -> Tensor:
        asked.append(clips)
        return clips.mean(dim=1, keepdim=True).repeat(1, 16, 1, 1, 1)

    clips, each_takes = draw(0, (3, 3, 5, 4, 4)), 16 * 5 * 4 * 4 * 4
    remembered = Remembered(encode, 3 * each_takes)
    for _ in range(2):
        assert torch.equal(remembered(clips[:2].clone()), encode(clips[:2]))
    # The same numbers in another shape are another clip.
    other = clips[1:2].reshape(1, 3, 4, 5, 4)
    assert torch.equal(remembered(other), encode(other))
    # One after the other, whatever comes beside them; and what was asked for by the test itself.
    assert [len(one) for one in asked] == [1, 1, 2, 2, 1, 1]
    # A set that takes more than there is room for is not kept.
    for _ in range(2):
        asked.clear()
        assert torch.equal(remembered(clips), encode(clips))
    assert [len(one) for one in asked] == [1, 1, 1, 3]


def test_all_of_an_example_is_on_the_runs_device(model: Path, mixture: Path, config: Any) -> None:
    told = load(config(TEACH), Teach)
    examples = Examples(model, told.model, told.data, torch.device("cpu"))
    # In place of a GPU: what lies here goes together with nothing that lies there.
    examples._device = torch.device("meta")
    seen = set()
    for batch in chain.from_iterable(islice(Stream(mixture), 24)):
        # As it is, and as where text or references are all that is given.
        for one in (batch, replace(batch, arrays={"clip": batch.arrays["clip"]})):
            example = examples(one)
            assert (example.clean.device.type, example.conditions.context.device.type) == ("meta", "meta")
        seen.add(batch.bucket.task)
    assert len(seen) >= 5
