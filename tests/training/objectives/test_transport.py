"""Optimal transport: exact against float64 references, finite differences and known cases."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.objectives import dmd, ot, published
from training.objectives.ot import TransportOptions

pytestmark = pytest.mark.usefixtures("one_thread")


def draw_latents(seed: int, shape: tuple[int, ...] = (2, 4, 2, 6, 8)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def solve_reference(cost: Tensor, epsilon: float, turns: int = 20_000, rho: float | None = None) -> Tensor:
    """The entropic plan [N, N] by plain log-domain iterations in float64, to convergence."""
    cost = cost.double()
    size = len(cost)
    row, column = torch.zeros(size).double(), torch.zeros(size).double()
    for _ in range(turns):
        row = -epsilon * torch.logsumexp((column - cost) / epsilon - math.log(size), dim=1)
        if rho is not None:
            row = row * rho / (rho + epsilon)
        column = -epsilon * torch.logsumexp((row[:, None] - cost) / epsilon - math.log(size), dim=0)
    return ((row[:, None] + column - cost) / epsilon).exp() / size**2


def dual_value(source: Tensor, target: Tensor, epsilon: float) -> Tensor:
    """The dual value of entropic transport between tokens [N, D], float64."""
    cost = torch.cdist(source, target).square()
    size = len(source)
    row, column = torch.zeros(size).double(), torch.zeros(size).double()
    for _ in range(400):
        row = -epsilon * torch.logsumexp((column - cost) / epsilon - math.log(size), dim=1)
        column = -epsilon * torch.logsumexp((row[:, None] - cost) / epsilon - math.log(size), dim=0)
    return (row + column).mean()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6), epsilon=st.sampled_from([0.02, 0.05, 0.3, 1.0]), spread=st.sampled_from([0.1, 1.0, 5.0])
)
def test_marginals_hold_to_the_tolerance(seed: int, epsilon: float, spread: float) -> None:
    source, target = draw_latents(seed, (3, 40, 5)), spread * draw_latents(seed + 1, (3, 40, 5)) + spread
    cost = torch.cdist(source, target).square()
    cost /= cost.mean(dim=(1, 2), keepdim=True)
    plan = ot.solve_plan(cost.clone(), epsilon, 1e-3, 5000)
    assert torch.allclose(plan.mass.sum(dim=1), torch.full((3, 40), 1 / 40), rtol=1e-4)
    rows = plan.mass.sum(dim=2)
    assert float((rows - 1 / 40).abs().sum(dim=1).max()) <= 1.2e-3
    assert (plan.error <= 1e-3).all()


@pytest.mark.parametrize("rho", [None, 0.5, 20.0])
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_the_plan_is_that_of_float64(epsilon: float, rho: float | None) -> None:
    source, target = draw_latents(1, (1, 30, 4)), draw_latents(2, (1, 30, 4)) + 0.5
    cost = torch.cdist(source, target).square()
    cost /= cost.mean()
    plan = ot.solve_plan(cost.clone(), epsilon, 1e-6, 20_000, rho)
    assert torch.allclose(plan.mass[0].double(), solve_reference(cost[0], epsilon, rho=rho), atol=2e-6)


@pytest.mark.parametrize("rho", [0.1, *(pytest.param(rho, marks=pytest.mark.long) for rho in (1.0, 10.0, 100.0))])
@pytest.mark.parametrize("distance", [0.3, 1.0])
def test_a_relaxed_plan_is_found_as_soon_as_a_balanced_one_and_its_error_is_honest(rho: float, distance: float) -> None:
    source = draw_latents(1, (1, 200, 8))
    target = source + distance * (draw_latents(2, (1, 200, 8)) - source)
    cost = torch.cdist(source, target).square()
    cost /= cost.mean()
    plan = ot.solve_plan(cost.clone(), 0.05, 1e-2, 5000, rho)
    assert plan.iterations <= 2 * ot.solve_plan(cost.clone(), 0.05, 1e-2, 5000).iterations
    gap = float((plan.mass[0].double() - solve_reference(cost[0], 0.05, 2000, rho)).abs().sum())
    assert gap < 3e-2
    assert gap < 4 * float(plan.error) + 1e-3


def test_relaxed_without_end_it_is_the_balanced_transport() -> None:
    fake, real = draw_latents(1, (1, 4, 2, 8, 8)), draw_latents(2, (1, 4, 2, 8, 8))
    balanced, relaxed, strict = (
        ot.compute_transport(fake, real, TransportOptions(rho=rho, tolerance=1e-5, iterations=5000)).residual
        for rho in (None, 1e5, 0.5)
    )
    assert torch.allclose(relaxed, balanced, atol=2e-3)
    assert not torch.allclose(strict, balanced, atol=1e-1)


def test_the_plan_of_tokens_to_themselves_is_that_of_float64() -> None:
    tokens = draw_latents(3, (1, 30, 4))
    cost = torch.cdist(tokens, tokens).square()
    cost /= cost.mean()
    plan = ot.solve_self_plan(cost.clone(), 0.1, 1e-6, 5000)
    assert torch.allclose(plan.mass[0].double(), solve_reference(cost[0], 0.1), atol=2e-6)


def test_the_residual_is_the_gradient_of_the_sinkhorn_divergence() -> None:
    fake, real = draw_latents(5, (1, 2, 1, 6, 8)), draw_latents(6, (1, 2, 1, 6, 8)) * 0.7 + 0.4
    transport = ot.compute_transport(fake, real, TransportOptions(epsilon=0.2, tolerance=1e-6, iterations=20_000))
    fake_tokens, real_tokens = ot.to_tokens(fake)[0].double(), ot.to_tokens(real)[0].double()
    epsilon = float(transport.signals["epsilon"])
    expected = torch.zeros_like(fake_tokens)
    step = 1e-4
    for row in range(0, len(fake_tokens), 6):
        for column in range(fake_tokens.shape[1]):
            values = []
            for sign in (1, -1):
                shifted = fake_tokens.clone()
                shifted[row, column] += sign * step
                values.append(dual_value(shifted, real_tokens, epsilon) - dual_value(shifted, shifted, epsilon) / 2)
            # The gradient of squared distances is twice the difference, and each token has a mass of 1/N.
            expected[row, column] = (values[0] - values[1]) / (2 * step) * len(fake_tokens) / 2
    actual = ot.to_tokens(transport.residual)[0].double()
    assert torch.allclose(actual[::6], expected[::6], atol=2e-3)


def test_where_the_plan_is_the_identity_it_is_dmd() -> None:
    real = 3 * draw_latents(7)
    fake = real + 0.01 * draw_latents(8)
    transport = ot.compute_transport(fake, real, TransportOptions(epsilon=1e-3, tolerance=1e-5, iterations=1000))
    assert float(transport.signals["diagonal"]) == pytest.approx(1, abs=1e-5)
    assert torch.allclose(transport.residual, fake - real, atol=1e-5)
    assert float(transport.signals["cosine"]) == pytest.approx(1, abs=1e-4)
    student = draw_latents(9)
    transported, plain = (
        dmd.direction(ot.mix_residual(fake, real, option, 1.0), student, real) for option in (transport, None)
    )
    assert torch.allclose(transported, plain, atol=1e-5)


def test_weight_0_is_dmd_bit_for_bit() -> None:
    fake, real = draw_latents(1), draw_latents(2)
    transport = ot.compute_transport(fake, real, TransportOptions(weight=0))
    assert torch.equal(ot.mix_residual(fake, real, transport, 0.0), fake - real)


def test_nothing_is_pulled_where_both_are_alike() -> None:
    fake = draw_latents(4)
    scale = fake.abs().mean()
    for epsilon in (0.05, 0.5, 2.0):
        transport = ot.compute_transport(
            fake, fake.clone(), TransportOptions(epsilon=epsilon, tolerance=1e-5, iterations=5000)
        )
        assert float(transport.residual.abs().mean() / scale) < 1e-3
    biased = ot.compute_transport(fake, fake.clone(), TransportOptions(epsilon=2.0, debias=False))
    assert float(biased.residual.abs().mean() / scale) > 0.3


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_latents_of_another_scale_give_the_same_plan(factor: float) -> None:
    fake, real = draw_latents(1), draw_latents(2)
    original, scaled = (ot.compute_transport(k * fake, k * real, TransportOptions()) for k in (1.0, factor))
    assert torch.allclose(scaled.residual, factor * original.residual, rtol=1e-3, atol=1e-4 * factor)


def test_frames_do_not_know_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, real = draw_latents(1), draw_latents(2)
    options = TransportOptions(tolerance=1e-6, iterations=5000)
    together = ot.compute_transport(fake, real, options).residual
    monkeypatch.setattr(ot, "_WORKSPACE", 1)
    chunked = ot.compute_transport(fake, real, options).residual
    assert torch.allclose(together, chunked, atol=1e-4)
    permuted = ot.compute_transport(fake.flip(0, 2), real.flip(0, 2), options).residual.flip(0, 2)
    assert torch.allclose(together, permuted, atol=1e-4)


def test_a_relaxed_student_gives_up_its_outliers() -> None:
    real = draw_latents(1, (1, 4, 1, 20, 20))
    fake = real + 0.1 * draw_latents(2, (1, 4, 1, 20, 20))
    fake[..., :2, :8] += 30
    outliers = 4
    outlier_mass = {}
    for rho in (None, 0.2, 1e6):
        fake_tokens, real_tokens = ot.to_tokens(fake), ot.to_tokens(real)
        cost = torch.cdist(fake_tokens, real_tokens).square()
        cost /= cost.mean()
        mass = ot.solve_plan(cost, 0.01, 1e-4, 20_000, rho).mass[0]
        mass_of_outliers = mass.sum(dim=1)[:outliers].sum()
        outlier_mass[rho] = float(mass_of_outliers)
        assert float(mass.sum()) == pytest.approx(1, abs=1e-3)
    assert outlier_mass[None] == pytest.approx(outliers / 100, rel=1e-2)
    assert outlier_mass[0.2] < 1e-3
    assert outlier_mass[1e6] == pytest.approx(outlier_mass[None], rel=1e-2)


def test_the_cost_of_places_keeps_content_where_it_is() -> None:
    real = draw_latents(1, (1, 4, 1, 12, 12))
    fake = real.roll((4, 4), (3, 4))
    diagonals = [
        float(ot.compute_transport(fake, real, TransportOptions(position=position)).signals["diagonal"])
        for position in (0, 20, 500)
    ]
    assert diagonals[0] < 0.05
    assert diagonals[0] < diagonals[1] < diagonals[2]
    assert diagonals[2] > 0.9


def test_tokens_and_back() -> None:
    original = draw_latents(3)
    assert torch.equal(ot.from_tokens(ot.to_tokens(original), original.shape), original)
    # One token is a square of 2 x 2 latents.
    changed = original.clone()
    changed[0, :, 1, 2:4, 4:6] += 1
    rows = (ot.to_tokens(changed) != ot.to_tokens(original)).any(dim=2).nonzero()
    assert rows.tolist() == [[1, 1 * 4 + 2]]


def test_under_autocast_it_is_float32() -> None:
    fake, real = draw_latents(1), draw_latents(2)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = ot.compute_transport(fake, real, TransportOptions())
    assert torch.equal(under_autocast.residual, ot.compute_transport(fake, real, TransportOptions()).residual)
    assert under_autocast.residual.dtype == torch.float32


def test_what_is_no_number_is_refused() -> None:
    fake, real = draw_latents(1), draw_latents(2)
    fake[0, 0, 0, 0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        ot.compute_transport(fake, real, TransportOptions())
    with pytest.raises(ValueError, match="even sides"):
        ot.compute_transport(draw_latents(1, (1, 4, 1, 5, 6)), draw_latents(1, (1, 4, 1, 5, 6)), TransportOptions())


@pytest.mark.parametrize(
    "wrong", [{"weight": 2}, {"epsilon": 0}, {"tolerance": 0}, {"iterations": 0}, {"rho": 0}, {"position": -1}]
)
def test_options_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="weight from 0 to 1"):
        TransportOptions(**wrong)  # type: ignore[arg-type]


def test_the_published_gradient_is_of_one_norm_a_frame_and_swamps_dmd() -> None:
    fake, real = draw_latents(1, (1, 16, 3, 8, 12)), draw_latents(2, (1, 16, 3, 8, 12))
    gradient = published.transport_gradient(fake, real)
    assert torch.allclose(gradient.square().sum(dim=(1, 3, 4)).sqrt(), torch.ones(1, 3), atol=1e-5)
    step_gradient = published.even_step_gradient(fake, real, torch.tensor([0.5]))
    dmd_gradient = 0.2 * 0.5 * (fake - real) / fake.numel()
    assert float((step_gradient - dmd_gradient).norm() / dmd_gradient.norm()) > 50


def test_the_published_cost_and_its_gradient_are_those_of_sixty_iterations() -> None:
    source, target = draw_latents(1, (12, 3)).double().requires_grad_(), draw_latents(2, (12, 3)).double()

    def expected_cost(leaf: Tensor) -> float:
        cost = torch.cdist(leaf, target).square()
        return float((solve_reference(cost, 0.1, turns=60) * cost).sum())

    cost = published.transport_cost(source[None], target[None]).sum()
    assert float(cost.detach()) == pytest.approx(expected_cost(source.detach()), rel=1e-9)
    (gradient,) = torch.autograd.grad(cost, source)
    for row, column in ((0, 0), (5, 1), (11, 2)):
        step = torch.zeros(12, 3).double()
        step[row, column] = 1e-5
        difference = (expected_cost(source.detach() + step) - expected_cost(source.detach() - step)) / 2e-5
        assert float(gradient[row, column]) == pytest.approx(difference, rel=1e-5, abs=1e-8)
