"""Optimal transport between the fake score's and the teacher's predictions: each token is pulled to where its row of
the plan sends it, not to the token in its own place.

Per latent frame, tokens are squares of 2 x 2 latents (one token of the transformer), all of the same mass. With the
plan P between fake tokens A and real tokens B held constant, the gradient of entropic transport at A_i is A_i minus the
mean of the B_j weighted by P_ij (envelope theorem), and its debiased form, that of the Sinkhorn divergence, is

    (A_i - mean of B by P_AB) - (A_i - mean of A by P_AA)        [Feydy et al., arXiv:1810.08278]

which is A_i - B_i if the plans are the identity: plain DMD. So there is one gradient, from plain DMD at weight 0 to
pure transport at weight 1 (`mix_residual`), and nothing is differentiated through iterations.

The plan is computed in float32 by annealed Sinkhorn scaling, whose kernel is rebuilt from its potentials whenever the
scalings grow large. [stabilised scaling: Schmitzer, arXiv:1610.06519; the student's side relaxed: Chizat et al.,
arXiv:1607.05816; as VDOT++ does, arXiv:2610.03221]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from training.diffusion.flow_matching import check_finite

# The side of a token, in latents.
_TOKEN_SIDE = 2
# Bytes that the matrices of a chunk of frames may take: chunks bound the memory of a plan, not its time.
_WORKSPACE = 256 << 20
# Matrices [N, N] of a frame alive at once: two costs or kernels, and the workspace of a product or exponential.
_MATRICES = 3
# In mean costs; float32 cannot distinguish more from infinity.
_MAX_COST_RATIO = 1e6
# Scalings beyond this (natural logarithms) are absorbed into the potentials: float32 overflows at 88.
_MAX_LOG_SCALING = 25.0


@dataclass(frozen=True, slots=True)
class TransportOptions:
    """Options of transport. Costs are squared distances over their mean in the frame, so all options are relative."""

    weight: float = 0.8
    """The share of transport in the gradient."""
    epsilon: float = 0.05
    """The entropy's weight, in mean costs."""
    tolerance: float = 1e-2
    """The mass, of 1, that may be out of its row when iterating stops."""
    iterations: int = 200
    """The most iterations."""
    debias: bool = True
    """Whether the pull of the fake tokens towards each other is subtracted."""
    rho: float | None = None
    """The cost for a token of the student to give up its mass; null: it cannot."""
    position: float = 0.0
    """The cost of moving across the full height or width of a frame, in mean costs; with 0 content moves freely."""

    def __post_init__(self) -> None:
        valid = (
            0 <= self.weight <= 1
            and 1e-3 <= self.epsilon <= _MAX_COST_RATIO
            and 0 < self.tolerance < 1
            and self.iterations > 0
            and (self.rho is None or 0 < self.rho <= _MAX_COST_RATIO)
            and 0 <= self.position <= _MAX_COST_RATIO
        )
        if not valid:
            limit = f"{_MAX_COST_RATIO:g}"
            raise ValueError(
                f"transport has a weight from 0 to 1, an epsilon from 0.001 to {limit}, a tolerance between 0 and 1, "
                f"iterations above 0, rho (or none) above 0 and up to {limit}, and a position from 0 to {limit}"
            )


@dataclass(frozen=True, slots=True)
class TransportPlan:
    """A plan of n frames, [n, N, N] float32 with row and column sums of 1/N, and how well it converged: `error` [n] is
    the L1 distance of the row sums from their target; column sums are exact."""

    mass: Tensor
    error: Tensor
    iterations: int


@dataclass(frozen=True, slots=True)
class TransportResult:
    """The residual that replaces fake - real, float32 [B, C, T', h, w], and signals that show what transport did:
    scalars, means over frames."""

    residual: Tensor
    signals: dict[str, Tensor]


def compute_transport(fake: Tensor, real: Tensor, options: TransportOptions) -> TransportResult:
    """Transport of clean latents [B, C, T', h, w], h and w even, frame by frame; of any dtype, computed in float32.

    Signals: `diagonal` (mass that stays in place, of 1), `error` (the largest of a frame), `iterations`, `targets`
    (exp of the entropy of a row over N: 1/N one target, 1 all), `cosine` and `ratio` of the residual to fake - real,
    `epsilon` (in squared latents), `given_up` (the share of tokens that lost over half of their mass: 0 without rho).

    Raises ValueError for shapes that do not fit, FloatingPointError for values that are not finite.
    """
    if fake.shape != real.shape or fake.dim() != 5 or fake.shape[3] % _TOKEN_SIDE or fake.shape[4] % _TOKEN_SIDE:
        raise ValueError(f"expected latents [B, C, T', h, w] of one shape with even sides: {fake.shape}, {real.shape}")
    fake, real = fake.detach(), real.detach()
    with torch.autocast(fake.device.type, enabled=False):
        fake_tokens, real_tokens = to_tokens(fake), to_tokens(real)
        check_finite("a prediction to transport", fake_tokens, real_tokens)
        size = tuple(side // _TOKEN_SIDE for side in fake.shape[3:])
        position_costs = _position_costs(size, options.position, fake_tokens.device)
        count = max(1, _WORKSPACE // (_MATRICES * 4 * fake_tokens.shape[1] ** 2))
        chunks = [
            _solve_residual(*pair, position_costs, options)
            for pair in zip(fake_tokens.split(count), real_tokens.split(count), strict=True)
        ]
    residual = from_tokens(torch.cat([chunk for chunk, _ in chunks]), fake.shape)
    signals = {name: torch.cat([values[name] for _, values in chunks]) for name in chunks[0][1]}
    difference = fake.float() - real.float()
    summary = {
        name: values.amax() if name in ("error", "iterations") else values.mean() for name, values in signals.items()
    }
    summary["cosine"] = functional.cosine_similarity(residual.flatten(), difference.flatten(), dim=0)
    summary["ratio"] = residual.norm() / difference.norm().clamp(min=1e-12)
    return TransportResult(residual, summary)


def mix_residual(fake: Tensor, real: Tensor, transport: TransportResult | None, weight: float) -> Tensor:
    """The difference for `dmd.direction`: fake - real at weight 0, bit for bit; transport's residual at weight 1."""
    difference = fake.float() - real.float()
    return difference if transport is None else torch.lerp(difference, transport.residual, weight)


def to_tokens(latents: Tensor) -> Tensor:
    """The tokens of each frame, float32 [B T', N, 4 C], from latents [B, C, T', h, w]."""
    frames = latents.float().transpose(1, 2).flatten(0, 1)
    return functional.pixel_unshuffle(frames, _TOKEN_SIDE).flatten(2).transpose(1, 2)


def from_tokens(tokens: Tensor, shape: torch.Size) -> Tensor:
    """Latents of a shape [B, C, T', h, w] from their tokens: the inverse of `to_tokens`."""
    batch, _, length, height, width = shape
    frames = tokens.transpose(1, 2).unflatten(2, (height // _TOKEN_SIDE, width // _TOKEN_SIDE))
    return functional.pixel_shuffle(frames, _TOKEN_SIDE).unflatten(0, (batch, length)).transpose(1, 2)


def solve_plan(
    cost: Tensor, epsilon: float, tolerance: float, iterations: int, rho: float | None = None
) -> TransportPlan:
    """The entropic plan between N and N tokens of equal mass, for each frame's costs, float32 [n, N, N].

    Annealed: epsilon is halved from 1 on, so that distant mass moves first. Columns are scaled last. `error` is the L1
    error of the row masses, of 1; with `rho`, their change in one more turn, up to a factor common to all rows.
    """
    count, size, _ = cost.shape
    row, column = cost.new_zeros(count, size, 1), cost.new_zeros(count, 1, size)
    kernel = torch.empty_like(cost)
    total_turns, error, levels = 0, cost.new_ones(count), _epsilon_levels(epsilon)
    for level in levels:
        last = level == epsilon
        # Levels before the last need not converge: they only initialise the next one.
        level_tolerance, limit = (tolerance, iterations) if last else (10 * tolerance, 8)
        level_turns = 0
        while level_turns < limit:
            row = _softmin(cost, column, level, 2, kernel)
            if rho is not None:
                row = row * (rho / (rho + level))
            column = _softmin(cost, row, level, 1, kernel)
            # The kernel now holds exp((row + column - cost) / level) up to a factor of each column.
            kernel /= kernel.sum(dim=1, keepdim=True)
            row_scale, column_scale, turns, error = _scale(
                kernel, row, level, rho, level_tolerance, limit - level_turns
            )
            row, column = row + level * row_scale.log(), column + level * column_scale.log()
            level_turns += turns
            if bool((error <= level_tolerance).all()):
                break
        total_turns += level_turns
    return TransportPlan(kernel.mul_(row_scale).mul_(column_scale).div_(size), error, total_turns)


def solve_self_plan(cost: Tensor, epsilon: float, tolerance: float, iterations: int) -> TransportPlan:
    """The plan of tokens to themselves, for symmetric costs with a diagonal of 0: one scaling serves both sides, and
    averaged updates converge fast. [Feydy et al., section 3]"""
    size = cost.shape[1]
    kernel = cost.div_(-epsilon).exp_().div_(size)
    scale = kernel.new_full((len(kernel), size, 1), size**0.5)
    sums = kernel @ scale
    error, turns = (scale * sums - 1).abs().mean(dim=(1, 2)), 0
    while turns < iterations and not bool((error <= tolerance).all()):
        scale = (scale / sums).sqrt()
        sums = kernel @ scale
        error, turns = (scale * sums - 1).abs().mean(dim=(1, 2)), turns + 1
    return TransportPlan(kernel.mul_(scale).mul_(scale.transpose(1, 2)).div_(size), error, turns)


def _solve_residual(
    fake: Tensor, real: Tensor, position_costs: Tensor | None, options: TransportOptions
) -> tuple[Tensor, dict[str, Tensor]]:
    """The residual of frames [n, N, D], and the signals of each frame."""
    center = real.mean(dim=1, keepdim=True)
    fake, real = fake - center, real - center
    cost = _squared_distances(fake, real)
    unit = cost.mean(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    cost /= unit
    if position_costs is not None:
        cost += position_costs
    plan = solve_plan(cost, options.epsilon, options.tolerance, options.iterations, options.rho)
    del cost
    size = fake.shape[1]
    rows = plan.mass.sum(dim=2, keepdim=True).clamp(min=1e-30)
    mean = (plan.mass @ real) / rows
    signals = {
        "diagonal": plan.mass.diagonal(dim1=1, dim2=2).sum(dim=1),
        "error": plan.error,
        "iterations": plan.error.new_full((len(fake),), plan.iterations),
        "targets": torch.special.entr(plan.mass.div_(rows)).sum(dim=2).exp().mean(dim=1) / size,
        "epsilon": options.epsilon * unit.flatten(),
        "given_up": (size * rows < 0.5).float().mean(dim=(1, 2)),
    }
    # Frees memory for the next plan.
    del plan
    self_mean = fake
    if options.debias:
        cost = _squared_distances(fake, fake).div_(unit)
        cost.diagonal(dim1=1, dim2=2).zero_()
        if position_costs is not None:
            cost += position_costs
        self_transport = solve_self_plan(cost, options.epsilon, options.tolerance, options.iterations)
        signals["error"] = torch.maximum(signals["error"], self_transport.error)
        self_mass = self_transport.mass
        self_mean = (self_mass @ fake) / self_mass.sum(dim=2, keepdim=True)
    residual = self_mean - mean
    return residual if options.rho is None else size * rows * residual, signals


def _scale(
    kernel: Tensor, row: Tensor, level: float, rho: float | None, tolerance: float, limit: int
) -> tuple[Tensor, Tensor, int, Tensor]:
    """Scalings of rows [n, N, 1] and columns [n, 1, N], the turns taken, and each frame's error."""
    row_scale, column_scale = torch.ones_like(row), torch.ones_like(row).transpose(1, 2)
    # Relaxed, a row is scaled by less than its deficit, and its potential is pulled back to 0.
    power, pull = (1.0, 1.0) if rho is None else (rho / (rho + level), (-row / (rho + level)).exp())
    for turn in range(1, limit + 1):
        sums = kernel @ column_scale.transpose(1, 2)
        target = sums.clamp(min=1e-30).pow(-power) * pull
        # Relaxed, all rows drift slowly by a common factor, which the columns undo: it does not change the plan.
        drift = (row_scale * sums).sum(dim=1, keepdim=True) / (target * sums).sum(dim=1, keepdim=True)
        error = ((drift * target - row_scale).abs() * sums).mean(dim=(1, 2))
        if bool((error <= tolerance).all()):
            return row_scale, column_scale, turn, error
        row_scale = target
        column_scale = 1 / (row_scale.transpose(1, 2) @ kernel).clamp(min=1e-30)
        if bool(
            (row_scale.log().abs().amax() > _MAX_LOG_SCALING) | (column_scale.log().abs().amax() > _MAX_LOG_SCALING)
        ):
            break
    return row_scale, column_scale, turn, error


def _softmin(cost: Tensor, potential: Tensor, level: float, dim: int, work: Tensor) -> Tensor:
    """-level log mean exp((potential - cost) / level) along a dimension; `work` then holds the exponentials, divided by
    the largest along that dimension."""
    torch.sub(potential, cost, out=work)
    work.div_(level)
    largest = work.amax(dim=dim, keepdim=True)
    work.sub_(largest).exp_()
    return -level * (largest + work.mean(dim=dim, keepdim=True).log())


def _epsilon_levels(epsilon: float) -> list[float]:
    """1, 1/2, 1/4 ... and finally `epsilon`."""
    levels = []
    level = 1.0
    while level > epsilon:
        levels.append(level)
        level /= 2
    return [*levels, epsilon]


def _squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """Squared distances [n, N, N] of rows [n, N, D]."""
    distances = torch.baddbmm(first.square().sum(dim=2, keepdim=True), first, second.transpose(1, 2), alpha=-2)
    distances += second.square().sum(dim=2)[:, None]
    return distances.clamp_(min=0)


def _position_costs(size: tuple[int, int], weight: float, device: torch.device) -> Tensor | None:
    """The cost of moving, [1, N, N]: `weight` times the squared distance, with height and width of a frame as 1."""
    if not weight:
        return None
    height, width = size
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    positions = torch.stack([y.flatten(), x.flatten()], dim=1).to(device)
    return weight * _squared_distances(positions[None], positions[None])
