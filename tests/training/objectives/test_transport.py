"""Optimal transport: exact against float64 references, finite differences and the cases that are known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.objectives import dmd, ot, published
from training.objectives.ot import Transport

pytestmark = pytest.mark.usefixtures("one_thread")


def latents(seed: int, shape: tuple[int, ...] = (2, 4, 2, 6, 8)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def reference(cost: Tensor, epsilon: float, turns: int = 20_000, rho: float | None = None) -> Tensor:
    """The entropic plan [N, N] by plain log-domain iterations in float64, to the end."""
    cost = cost.double()
    size = len(cost)
    f, g = torch.zeros(size).double(), torch.zeros(size).double()
    for _ in range(turns):
        f = -epsilon * torch.logsumexp((g - cost) / epsilon - math.log(size), dim=1)
        if rho is not None:
            f = f * rho / (rho + epsilon)
        g = -epsilon * torch.logsumexp((f[:, None] - cost) / epsilon - math.log(size), dim=0)
    return ((f[:, None] + g - cost) / epsilon).exp() / size**2


def value(a: Tensor, b: Tensor, epsilon: float) -> Tensor:
    """The dual value of entropic transport between tokens [N, D], float64."""
    cost = torch.cdist(a, b).square()
    size = len(a)
    f, g = torch.zeros(size).double(), torch.zeros(size).double()
    for _ in range(400):
        f = -epsilon * torch.logsumexp((g - cost) / epsilon - math.log(size), dim=1)
        g = -epsilon * torch.logsumexp((f[:, None] - cost) / epsilon - math.log(size), dim=0)
    return (f + g).mean()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6), epsilon=st.sampled_from([0.02, 0.05, 0.3, 1.0]), spread=st.sampled_from([0.1, 1.0, 5.0])
)
def test_marginals_hold_to_the_tolerance(seed: int, epsilon: float, spread: float) -> None:
    a, b = latents(seed, (3, 40, 5)), spread * latents(seed + 1, (3, 40, 5)) + spread
    cost = torch.cdist(a, b).square()
    cost /= cost.mean(dim=(1, 2), keepdim=True)
    found = ot.plan(cost.clone(), epsilon, 1e-3, 5000)
    assert torch.allclose(found.mass.sum(dim=1), torch.full((3, 40), 1 / 40), rtol=1e-4)
    rows = found.mass.sum(dim=2)
    assert float((rows - 1 / 40).abs().sum(dim=1).max()) <= 1.2e-3
    assert (found.error <= 1e-3).all()


@pytest.mark.parametrize("rho", [None, 0.5, 20.0])
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_the_plan_is_that_of_float64(epsilon: float, rho: float | None) -> None:
    a, b = latents(1, (1, 30, 4)), latents(2, (1, 30, 4)) + 0.5
    cost = torch.cdist(a, b).square()
    cost /= cost.mean()
    found = ot.plan(cost.clone(), epsilon, 1e-6, 20_000, rho)
    assert torch.allclose(found.mass[0].double(), reference(cost[0], epsilon, rho=rho), atol=2e-6)


@pytest.mark.parametrize("rho", [0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("apart", [0.3, 1.0])
def test_a_relaxed_plan_is_found_as_soon_as_a_balanced_one_and_its_error_is_honest(rho: float, apart: float) -> None:
    a = latents(1, (1, 200, 8))
    b = a + apart * (latents(2, (1, 200, 8)) - a)
    cost = torch.cdist(a, b).square()
    cost /= cost.mean()
    found = ot.plan(cost.clone(), 0.05, 1e-2, 5000, rho)
    assert found.iterations <= 2 * ot.plan(cost.clone(), 0.05, 1e-2, 5000).iterations
    away = float((found.mass[0].double() - reference(cost[0], 0.05, 2000, rho)).abs().sum())
    assert away < 3e-2
    assert away < 4 * float(found.error) + 1e-3


def test_relaxed_without_end_it_is_the_balanced_transport() -> None:
    fake, real = latents(1, (1, 4, 2, 8, 8)), latents(2, (1, 4, 2, 8, 8))
    balanced, relaxed, strict = (
        ot.transported(fake, real, Transport(rho=rho, tolerance=1e-5, iterations=5000)).residual
        for rho in (None, 1e5, 0.5)
    )
    assert torch.allclose(relaxed, balanced, atol=2e-3)
    assert not torch.allclose(strict, balanced, atol=1e-1)


def test_the_plan_of_tokens_to_themselves_is_that_of_float64() -> None:
    a = latents(3, (1, 30, 4))
    cost = torch.cdist(a, a).square()
    cost /= cost.mean()
    found = ot.self_plan(cost.clone(), 0.1, 1e-6, 5000)
    assert torch.allclose(found.mass[0].double(), reference(cost[0], 0.1), atol=2e-6)


def test_the_residual_is_the_gradient_of_the_sinkhorn_divergence() -> None:
    fake, real = latents(5, (1, 2, 1, 6, 8)), latents(6, (1, 2, 1, 6, 8)) * 0.7 + 0.4
    found = ot.transported(fake, real, Transport(epsilon=0.2, tolerance=1e-6, iterations=20_000))
    a, b = ot.tokens(fake)[0].double(), ot.tokens(real)[0].double()
    epsilon = float(found.signals["epsilon"])
    wanted = torch.zeros_like(a)
    step = 1e-4
    for row in range(0, len(a), 6):
        for column in range(a.shape[1]):
            moved = []
            for sign in (1, -1):
                other = a.clone()
                other[row, column] += sign * step
                moved.append(value(other, b, epsilon) - value(other, other, epsilon) / 2)
            # The gradient of squared distances is twice the difference, and each token has a mass of 1/N.
            wanted[row, column] = (moved[0] - moved[1]) / (2 * step) * len(a) / 2
    shown = ot.tokens(found.residual)[0].double()
    assert torch.allclose(shown[::6], wanted[::6], atol=2e-3)


def test_where_the_plan_is_the_identity_it_is_dmd() -> None:
    real = 3 * latents(7)
    fake = real + 0.01 * latents(8)
    found = ot.transported(fake, real, Transport(epsilon=1e-3, tolerance=1e-5, iterations=1000))
    assert float(found.signals["diagonal"]) == pytest.approx(1, abs=1e-5)
    assert torch.allclose(found.residual, fake - real, atol=1e-5)
    assert float(found.signals["cosine"]) == pytest.approx(1, abs=1e-4)
    student = latents(9)
    whole, plain = (dmd.direction(ot.mixed(fake, real, transport, 1.0), student, real) for transport in (found, None))
    assert torch.allclose(whole, plain, atol=1e-5)


def test_weight_0_is_dmd_bit_for_bit() -> None:
    fake, real = latents(1), latents(2)
    found = ot.transported(fake, real, Transport(weight=0))
    assert torch.equal(ot.mixed(fake, real, found, 0.0), fake - real)


def test_nothing_is_pulled_where_both_are_alike() -> None:
    fake = latents(4)
    scale = fake.abs().mean()
    for epsilon in (0.05, 0.5, 2.0):
        found = ot.transported(fake, fake.clone(), Transport(epsilon=epsilon, tolerance=1e-5, iterations=5000))
        assert float(found.residual.abs().mean() / scale) < 1e-3
    biased = ot.transported(fake, fake.clone(), Transport(epsilon=2.0, debias=False))
    assert float(biased.residual.abs().mean() / scale) > 0.3


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_latents_of_another_scale_give_the_same_plan(factor: float) -> None:
    fake, real = latents(1), latents(2)
    one, other = (ot.transported(k * fake, k * real, Transport()) for k in (1.0, factor))
    assert torch.allclose(other.residual, factor * one.residual, rtol=1e-3, atol=1e-4 * factor)


def test_frames_do_not_know_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, real = latents(1), latents(2)
    options = Transport(tolerance=1e-6, iterations=5000)
    together = ot.transported(fake, real, options).residual
    monkeypatch.setattr(ot, "_WORKSPACE", 1)
    alone = ot.transported(fake, real, options).residual
    assert torch.allclose(together, alone, atol=1e-4)
    permuted = ot.transported(fake.flip(0, 2), real.flip(0, 2), options).residual.flip(0, 2)
    assert torch.allclose(together, permuted, atol=1e-4)


def test_a_relaxed_student_gives_up_its_outliers() -> None:
    real = latents(1, (1, 4, 1, 20, 20))
    fake = real + 0.1 * latents(2, (1, 4, 1, 20, 20))
    fake[..., :2, :8] += 30
    tokens = 4
    kept = {}
    for rho in (None, 0.2, 1e6):
        a, b = ot.tokens(fake), ot.tokens(real)
        cost = torch.cdist(a, b).square()
        cost /= cost.mean()
        mass = ot.plan(cost, 0.01, 1e-4, 20_000, rho).mass[0]
        far = mass.sum(dim=1)[:tokens].sum()
        kept[rho] = float(far)
        assert float(mass.sum()) == pytest.approx(1, abs=1e-3)
    assert kept[None] == pytest.approx(tokens / 100, rel=1e-2)
    assert kept[0.2] < 1e-3
    assert kept[1e6] == pytest.approx(kept[None], rel=1e-2)


def test_the_cost_of_places_keeps_content_where_it_is() -> None:
    real = latents(1, (1, 4, 1, 12, 12))
    fake = real.roll((4, 4), (3, 4))
    diagonals = [float(ot.transported(fake, real, Transport(position=one)).signals["diagonal"]) for one in (0, 20, 500)]
    assert diagonals[0] < 0.05
    assert diagonals[0] < diagonals[1] < diagonals[2]
    assert diagonals[2] > 0.9


def test_tokens_and_back() -> None:
    shown = latents(3)
    assert torch.equal(ot.untokens(ot.tokens(shown), shown.shape), shown)
    # One token is a square of 2 x 2 latents.
    changed = shown.clone()
    changed[0, :, 1, 2:4, 4:6] += 1
    rows = (ot.tokens(changed) != ot.tokens(shown)).any(dim=2).nonzero()
    assert rows.tolist() == [[1, 1 * 4 + 2]]


def test_under_autocast_it_is_float32() -> None:
    fake, real = latents(1), latents(2)
    with torch.autocast("cpu", torch.bfloat16):
        inside = ot.transported(fake, real, Transport())
    assert torch.equal(inside.residual, ot.transported(fake, real, Transport()).residual)
    assert inside.residual.dtype == torch.float32


def test_what_is_no_number_is_refused() -> None:
    fake, real = latents(1), latents(2)
    fake[0, 0, 0, 0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        ot.transported(fake, real, Transport())
    with pytest.raises(ValueError, match="even sides"):
        ot.transported(latents(1, (1, 4, 1, 5, 6)), latents(1, (1, 4, 1, 5, 6)), Transport())


@pytest.mark.parametrize(
    "wrong", [{"weight": 2}, {"epsilon": 0}, {"tolerance": 0}, {"iterations": 0}, {"rho": 0}, {"position": -1}]
)
def test_options_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="weight from 0 to 1"):
        Transport(**wrong)  # type: ignore[arg-type]


def test_the_published_gradient_is_of_one_norm_a_frame_and_swamps_dmd() -> None:
    fake, real = latents(1, (1, 16, 3, 8, 12)), latents(2, (1, 16, 3, 8, 12))
    gradient = published.transport_gradient(fake, real)
    assert torch.allclose(gradient.square().sum(dim=(1, 3, 4)).sqrt(), torch.ones(1, 3), atol=1e-5)
    both = published.even_step(fake, real, torch.tensor([0.5]))
    of_dmd = 0.2 * 0.5 * (fake - real) / fake.numel()
    assert float((both - of_dmd).norm() / of_dmd.norm()) > 50


def test_the_published_cost_and_its_gradient_are_those_of_sixty_iterations() -> None:
    a, b = latents(1, (12, 3)).double().requires_grad_(), latents(2, (12, 3)).double()

    def wanted(moved: Tensor) -> float:
        cost = torch.cdist(moved, b).square()
        return float((reference(cost, 0.1, turns=60) * cost).sum())

    found = published.cost(a[None], b[None]).sum()
    assert float(found.detach()) == pytest.approx(wanted(a.detach()), rel=1e-9)
    (gradient,) = torch.autograd.grad(found, a)
    for row, column in ((0, 0), (5, 1), (11, 2)):
        step = torch.zeros(12, 3).double()
        step[row, column] = 1e-5
        difference = (wanted(a.detach() + step) - wanted(a.detach() - step)) / 2e-5
        assert float(gradient[row, column]) == pytest.approx(difference, rel=1e-5, abs=1e-8)
