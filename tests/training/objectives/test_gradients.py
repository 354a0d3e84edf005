"""DMD and the adversarial loss: exact against float64, finite differences and networks with known scores."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipeline.errors import UsageError
from training.diffusion.flow_matching import (
    add_noise,
    apply_guidance,
    check_finite,
    clean_from_velocity,
    shift_times,
    target_velocity,
)
from training.diffusion.schedule import Levels, Schedule, parse
from training.models.discriminator import Discriminator
from training.objectives import dmd, gan

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (2, 3, 2, 4, 6)


def draw(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_velocity_and_clean_latent_are_two_words_for_one_thing() -> None:
    clean, noise, sigma = draw(0), draw(1), torch.tensor([0.02, 0.98])
    noisy = add_noise(clean, noise, sigma)
    assert torch.allclose(clean_from_velocity(target_velocity(clean, noise), noisy, sigma), clean, atol=1e-6)
    assert torch.equal(add_noise(clean, noise, torch.zeros(2)), clean)
    assert torch.equal(add_noise(clean, noise, torch.ones(2)), noise)
    assert add_noise(clean.bfloat16(), noise, sigma).dtype == torch.float32


def test_guidance_of_1_is_none() -> None:
    assert torch.allclose(apply_guidance(draw(0), draw(1), 1.0), draw(0), atol=1e-6)
    assert torch.allclose(apply_guidance(draw(0), draw(1), 3.0), draw(1) + 3 * (draw(0) - draw(1)))


@pytest.mark.parametrize(
    ("shift", "steps"),
    [
        (1, [1000, 750, 500, 250]),
        (3, [1000, 900, 750, 500]),
        (5, [1000, 937.5, 833.3, 625]),
        (8, [1000, 960, 888.9, 727.3]),
        (16, [1000, 979.6, 941.2, 842.1]),
    ],
)
def test_the_steps_are_those_of_the_field(shift: float, steps: list[float]) -> None:
    assert Schedule(4, shift).timesteps.tolist() == pytest.approx(steps, abs=0.05)


def test_a_schedule_comes_back_as_it_was_stored() -> None:
    for schedule in (Schedule(), Schedule(1, 3.0), Schedule(8, 12.5)):
        assert parse(schedule.as_dict(), "a checkpoint") == schedule


@pytest.mark.parametrize(
    "change",
    [{"steps": 5}, {"shift": 8.0}, {"timesteps": [1000, 750, 500, 250]}, {"sampler": "unipc"}, {"steps": None}],
)
def test_a_schedule_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"a checkpoint stores no schedule|schedule in a checkpoint contradicts"):
        parse(Schedule().as_dict() | change, "a checkpoint")


def test_levels_stay_between_the_ends_and_lean_to_noise() -> None:
    levels = Levels()
    sigmas = levels.from_uniform(torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1])
    assert float(sigmas.min()) == pytest.approx(0.02)
    assert float(sigmas.max()) == pytest.approx(0.98)
    assert (sigmas.diff() >= 0).all()
    assert float(sigmas[500]) == pytest.approx(float(shift_times(torch.tensor(0.5), 5.0)))


def test_the_gradient_is_that_of_float64_and_of_its_loss() -> None:
    student, fake, real = draw(0), draw(1), draw(2)
    expected = torch.stack(
        [
            (fake_sample - real_sample) / (student_sample - real_sample).abs().mean()
            for student_sample, fake_sample, real_sample in zip(
                student.double(), fake.double(), real.double(), strict=True
            )
        ]
    )
    direction = dmd.direction(fake - real, student, real)
    assert torch.allclose(direction.double(), expected, rtol=1e-5)
    leaf = student.clone().requires_grad_()
    (0.5 * (leaf - (leaf - direction).detach()).square().mean()).backward()
    assert leaf.grad is not None
    assert torch.allclose(leaf.grad, dmd.as_gradient(direction), rtol=1e-5)
    assert torch.allclose(leaf.grad.double(), expected / expected.numel(), rtol=1e-5)


def test_the_gradient_means_the_same_at_every_resolution_and_batch() -> None:
    for shape in ((1, 16, 1, 4, 4), (1, 16, 21, 60, 104), (4, 16, 3, 8, 8)):
        student, fake, real = draw(0, shape), draw(1, shape), draw(2, shape)
        direction = dmd.direction(fake - real, student, real)
        assert float(direction.square().mean().sqrt()) == pytest.approx(
            math.sqrt(2) / (2 / math.sqrt(math.pi)), rel=0.2
        )


def test_of_predictions_alike_nothing_is_wanted() -> None:
    real = draw(1)
    assert float(dmd.direction(real - real, real, real).abs().max()) == 0


def test_every_frame_has_one_norm_and_the_whole_its_own() -> None:
    gradient = draw(0) * torch.tensor([1.0, 100.0]).view(1, 1, 2, 1, 1)
    equalized = dmd.equalize_frames(gradient)
    norms = equalized.square().sum(dim=(1, 3, 4)).sqrt()
    assert torch.allclose(norms[:, 0], norms[:, 1])
    assert torch.allclose(equalized.square().sum(dim=(1, 2, 3, 4)), gradient.square().sum(dim=(1, 2, 3, 4)))


def test_with_exact_scores_the_student_goes_to_its_teacher() -> None:
    """A student of N(m, 1) and a teacher of N(2, 1): both posterior means of a noisy sample have a closed form."""

    def posterior_mean(mean: float, noisy: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.view(-1, 1, 1, 1, 1)
        return mean + (1 - level) / ((1 - level) ** 2 + level**2) * (noisy - (1 - level) * mean)

    shape = (64, 2, 1, 2, 2)
    mean = torch.tensor(-1.0, requires_grad=True)
    optimizer = torch.optim.SGD([mean], lr=0.3)
    for step in range(200):
        sample = mean + draw(3 * step, shape)
        sigma = Levels().from_uniform(torch.rand(64, generator=torch.Generator().manual_seed(step)))
        noisy = add_noise(sample.detach(), draw(3 * step + 1, shape), sigma)
        fake, real = posterior_mean(mean.item(), noisy, sigma), posterior_mean(2.0, noisy, sigma)
        gradient = dmd.direction(fake - real, sample.detach(), real)
        optimizer.zero_grad()
        torch.autograd.backward(sample, dmd.as_gradient(gradient))
        optimizer.step()
    assert mean.item() == pytest.approx(2, abs=0.05)


def test_the_adversarial_losses_are_opposite_and_relative() -> None:
    fake_logits, real_logits = draw(0, (8,)), draw(1, (8,))
    for loss, sign in ((gan.student_loss, -1), (gan.discriminator_loss, 1)):
        fake_leaf, real_leaf = fake_logits.double().requires_grad_(), real_logits.double().requires_grad_()
        loss(fake_leaf, real_leaf).backward()
        weight = torch.sigmoid(sign * (fake_logits - real_logits).double()) / 8
        assert torch.allclose(fake_leaf.grad, sign * weight)
        # The student's loss has no gradient at the real logits.
        assert real_leaf.grad is None if sign < 0 else torch.allclose(real_leaf.grad, -weight)
        assert float(loss(fake_logits + 5, real_logits + 5)) == pytest.approx(
            float(loss(fake_logits, real_logits)), rel=1e-5
        )
    assert float(gan.student_loss(real_logits, real_logits)) == pytest.approx(math.log(2))


def test_smoothness_is_the_squared_gradient() -> None:
    slope = draw(0, (50,)).double()
    points = draw(1, (4000, 50)).double()
    noise = 1e-3
    perturbed = points + noise * draw(2, (4000, 50)).double()
    penalty = gan.gradient_penalty(points @ slope, perturbed @ slope, noise, 1)
    assert float(penalty) == pytest.approx(float(slope.square().sum()), rel=0.1)


def test_smoothness_means_the_same_at_every_resolution() -> None:
    torch.manual_seed(0)
    discriminator, penalties = Discriminator(24, 1, width=16), []
    for tokens in (48, 768):
        features = draw(1, (64, tokens, 24))
        perturbed = features + 1e-2 * draw(2, (64, tokens, 24))
        with torch.no_grad():
            logits, perturbed_logits = (
                discriminator([inputs], torch.full((64,), 0.5)) for inputs in (features, perturbed)
            )
        penalties.append(float(gan.gradient_penalty(logits, perturbed_logits, 1e-2, tokens)))
    assert penalties[1] == pytest.approx(penalties[0], rel=0.4)


def test_what_is_no_number_is_named() -> None:
    with pytest.raises(FloatingPointError, match="a score is not finite"):
        check_finite("a score", torch.tensor([1.0, math.inf]))
