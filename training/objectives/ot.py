"""Optimal transport between what the fake score and the teacher make of a sample: each token is pulled to where its
share of the plan goes, not to the token in its own place.

Per latent frame, tokens are squares of 2 x 2 latents (what the transformer takes as one), all of the same mass. With
the plan P between fake tokens A and real tokens B held still, the gradient of entropic transport at A_i is A_i less the
mean of the B_j by P_ij (envelope theorem), and its debiased form, that of the Sinkhorn divergence, is

    (A_i - mean of B by P_AB) - (A_i - mean of A by P_AA)        [Feydy et al., arXiv:1810.08278]

which is A_i - B_i where the plans are the identity: plain DMD. So there is one gradient, from plain DMD at weight 0 to
pure transport at weight 1 (`mixed`), and nothing is differentiated through iterations.

The plan is found in float32 by annealed Sinkhorn scaling, whose kernel is rebuilt from its potentials whenever the
scalings grow large. [stabilised scaling: Schmitzer, arXiv:1610.06519; the student's side relaxed: Chizat et al.,
arXiv:1607.05816; as VDOT++ does, arXiv:2610.03221]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from training.diffusion.flow_matching import finite

# The side of a token, in latents.
_SIDE = 2
# What a chunk of frames may take for its matrices, in bytes: what a plan costs is time, not memory.
_WORKSPACE = 256 << 20
# Matrices [N, N] of a frame that are alive at once: two costs or kernels, and what a product or an exponential takes.
_MATRICES = 3
# In mean costs; what is more is the same as no end of it, to float32.
_MOST = 1e6
# Scalings beyond this (as natural logarithms) go into the potentials: float32 ends at 88.
_LARGE = 25.0


@dataclass(frozen=True, slots=True)
class Transport:
    """How plans are found. Costs are squared distances over their mean in the frame, so all of these are relative.

    `weight`: the share of transport in the gradient. `epsilon`: the entropy's weight, in mean costs. `tolerance`: how
    much of the mass may be out of its row, of 1, after which iterating ends; or after `iterations`. `rho`: what it
    costs a token of the student to give up its mass (None: it cannot). `position`: the cost of moving across the whole
    height or width of a frame, in mean costs; 0 leaves content free to move.
    """

    weight: float = 0.8
    epsilon: float = 0.05
    tolerance: float = 1e-2
    iterations: int = 200
    debias: bool = True
    rho: float | None = None
    position: float = 0.0

    def __post_init__(self) -> None:
        sound = (
            0 <= self.weight <= 1
            and 1e-3 <= self.epsilon <= _MOST
            and 0 < self.tolerance < 1
            and self.iterations > 0
            and (self.rho is None or 0 < self.rho <= _MOST)
            and 0 <= self.position <= _MOST
        )
        if not sound:
            raise ValueError(
                f"transport has a weight from 0 to 1, an epsilon from 0.001 to {_MOST:g}, a tolerance between 0 and 1, "
                f"iterations above 0, rho (or none) above 0 and up to {_MOST:g}, and a position from 0 to {_MOST:g}"
            )


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan of n frames, [n, N, N] float32 whose sums are 1/N of a frame's mass, and how it came out: `error` is the
    L1 distance of its row sums from what they should be, [n], its column sums being exact."""

    mass: Tensor
    error: Tensor
    iterations: int


@dataclass(frozen=True, slots=True)
class Transported:
    """What takes the place of fake - real, float32 [B, C, T', h, w], and the signals without which nobody could say
    whether transport did anything: scalars, means over frames."""

    residual: Tensor
    signals: dict[str, Tensor]


def transported(fake: Tensor, real: Tensor, options: Transport) -> Transported:
    """Transport of clean latents [B, C, T', h, w], h and w even, frame by frame; of any dtype, computed in float32.

    Signals: `diagonal` (mass that stays in place, of 1), `error` (the largest of a frame), `iterations`, `targets`
    (exp of the entropy of a row over N: 1/N one target, 1 all), `cosine` and `ratio` of the residual to fake - real,
    `epsilon` (in squared latents), `given_up` (the share of tokens that lost over half of their mass: 0 without rho).

    Raises ValueError for shapes that do not fit, FloatingPointError for values that are no numbers.
    """
    if fake.shape != real.shape or fake.dim() != 5 or fake.shape[3] % _SIDE or fake.shape[4] % _SIDE:
        raise ValueError(f"latents [B, C, T', h, w] of even sides, both alike, not {fake.shape} and {real.shape}")
    fake, real = fake.detach(), real.detach()
    with torch.autocast(fake.device.type, enabled=False):
        a, b = tokens(fake), tokens(real)
        finite("a prediction that was to be transported", a, b)
        size = tuple(side // _SIDE for side in fake.shape[3:])
        places = _places(size, options.position, a.device)
        count = max(1, _WORKSPACE // (_MATRICES * 4 * a.shape[1] ** 2))
        found = [_residual(*pair, places, options) for pair in zip(a.split(count), b.split(count), strict=True)]
    residual = untokens(torch.cat([one for one, _ in found]), fake.shape)
    signals = {name: torch.cat([each[name] for _, each in found]) for name in found[0][1]}
    difference = fake.float() - real.float()
    told = {
        name: values.amax() if name in ("error", "iterations") else values.mean() for name, values in signals.items()
    }
    told["cosine"] = functional.cosine_similarity(residual.flatten(), difference.flatten(), dim=0)
    told["ratio"] = residual.norm() / difference.norm().clamp(min=1e-12)
    return Transported(residual, told)


def mixed(fake: Tensor, real: Tensor, transport: Transported | None, weight: float) -> Tensor:
    """What `dmd.direction` is of: fake - real at weight 0, bit for bit, and what transport makes of it at 1."""
    difference = fake.float() - real.float()
    return difference if transport is None else torch.lerp(difference, transport.residual, weight)


def tokens(latents: Tensor) -> Tensor:
    """The tokens of each frame, float32 [B T', N, 4 C], from latents [B, C, T', h, w]."""
    frames = latents.float().transpose(1, 2).flatten(0, 1)
    return functional.pixel_unshuffle(frames, _SIDE).flatten(2).transpose(1, 2)


def untokens(shown: Tensor, shape: torch.Size) -> Tensor:
    """The latents of a shape [B, C, T', h, w] that `tokens` made these of."""
    batch, _, length, height, width = shape
    frames = shown.transpose(1, 2).unflatten(2, (height // _SIDE, width // _SIDE))
    return functional.pixel_shuffle(frames, _SIDE).unflatten(0, (batch, length)).transpose(1, 2)


def plan(cost: Tensor, epsilon: float, tolerance: float, iterations: int, rho: float | None = None) -> Plan:
    """The entropic plan between N and N tokens of equal mass, for each frame's costs, float32 [n, N, N].

    Annealed: epsilon is halved from 1 on, so that what is far finds its way first. The last scaling is that of the
    columns. `error` is L1, of a mass of 1; with `rho`, of the change of row masses that one more turn would make, but
    for a factor that all rows share.
    """
    count, size, _ = cost.shape
    row, column = cost.new_zeros(count, size, 1), cost.new_zeros(count, 1, size)
    kernel = torch.empty_like(cost)
    done, error, levels = 0, cost.new_ones(count), _levels(epsilon)
    for level in levels:
        last = level == epsilon
        # What is not the last level need not be exact: it is where the next one begins.
        enough, limit = (tolerance, iterations) if last else (10 * tolerance, 8)
        within = 0
        while within < limit:
            row = _softmin(cost, column, level, 2, kernel)
            if rho is not None:
                row = row * (rho / (rho + level))
            column = _softmin(cost, row, level, 1, kernel)
            # The kernel now holds exp((row + column - cost) / level) up to a factor of each column.
            kernel /= kernel.sum(dim=1, keepdim=True)
            u, v, turns, error = _scaled(kernel, row, level, rho, enough, limit - within)
            row, column = row + level * u.log(), column + level * v.log()
            within += turns
            if bool((error <= enough).all()):
                break
        done += within
    return Plan(kernel.mul_(u).mul_(v).div_(size), error, done)


def self_plan(cost: Tensor, epsilon: float, tolerance: float, iterations: int) -> Plan:
    """The plan of tokens to themselves, for symmetric costs with a diagonal of 0: one scaling serves both sides, and
    halfway steps converge fast. [Feydy et al., section 3]"""
    size = cost.shape[1]
    kernel = cost.div_(-epsilon).exp_().div_(size)
    scale = kernel.new_full((len(kernel), size, 1), size**0.5)
    sums = kernel @ scale
    error, done = (scale * sums - 1).abs().mean(dim=(1, 2)), 0
    while done < iterations and not bool((error <= tolerance).all()):
        scale = (scale / sums).sqrt()
        sums = kernel @ scale
        error, done = (scale * sums - 1).abs().mean(dim=(1, 2)), done + 1
    return Plan(kernel.mul_(scale).mul_(scale.transpose(1, 2)).div_(size), error, done)


def _residual(a: Tensor, b: Tensor, places: Tensor | None, options: Transport) -> tuple[Tensor, dict[str, Tensor]]:
    """Of frames [n, N, D]: the residual, and the signals of each frame."""
    middle = b.mean(dim=1, keepdim=True)
    a, b = a - middle, b - middle
    cost = _squares(a, b)
    unit = cost.mean(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    cost /= unit
    if places is not None:
        cost += places
    found = plan(cost, options.epsilon, options.tolerance, options.iterations, options.rho)
    del cost
    size = a.shape[1]
    rows = found.mass.sum(dim=2, keepdim=True).clamp(min=1e-30)
    mean = (found.mass @ b) / rows
    signals = {
        "diagonal": found.mass.diagonal(dim1=1, dim2=2).sum(dim=1),
        "error": found.error,
        "iterations": found.error.new_full((len(a),), found.iterations),
        "targets": torch.special.entr(found.mass.div_(rows)).sum(dim=2).exp().mean(dim=1) / size,
        "epsilon": options.epsilon * unit.flatten(),
        "given_up": (size * rows < 0.5).float().mean(dim=(1, 2)),
    }
    # What follows needs the room.
    del found
    own = a
    if options.debias:
        cost = _squares(a, a).div_(unit)
        cost.diagonal(dim1=1, dim2=2).zero_()
        if places is not None:
            cost += places
        alike = self_plan(cost, options.epsilon, options.tolerance, options.iterations)
        signals["error"] = torch.maximum(signals["error"], alike.error)
        itself = alike.mass
        own = (itself @ a) / itself.sum(dim=2, keepdim=True)
    residual = own - mean
    return residual if options.rho is None else size * rows * residual, signals


def _scaled(
    kernel: Tensor, row: Tensor, level: float, rho: float | None, tolerance: float, limit: int
) -> tuple[Tensor, Tensor, int, Tensor]:
    """Scalings of rows [n, N, 1] and columns [n, 1, N], the turns that they took, and each frame's error."""
    u, v = torch.ones_like(row), torch.ones_like(row).transpose(1, 2)
    # Relaxed, a row is scaled by less than it lacks, and its potential is drawn back to 0.
    power, pull = (1.0, 1.0) if rho is None else (rho / (rho + level), (-row / (rho + level)).exp())
    for turn in range(1, limit + 1):
        sums = kernel @ v.transpose(1, 2)
        wanted = sums.clamp(min=1e-30).pow(-power) * pull
        # Relaxed, all rows together drift slowly, by a factor that the columns undo at once: it changes no plan.
        drift = (u * sums).sum(dim=1, keepdim=True) / (wanted * sums).sum(dim=1, keepdim=True)
        error = ((drift * wanted - u).abs() * sums).mean(dim=(1, 2))
        if bool((error <= tolerance).all()):
            return u, v, turn, error
        u = wanted
        v = 1 / (u.transpose(1, 2) @ kernel).clamp(min=1e-30)
        if bool((u.log().abs().amax() > _LARGE) | (v.log().abs().amax() > _LARGE)):
            break
    return u, v, turn, error


def _softmin(cost: Tensor, other: Tensor, level: float, along: int, work: Tensor) -> Tensor:
    """-level log mean exp((other - cost) / level) along a dimension; `work` is left with the exponentials, each over
    the largest along that dimension."""
    torch.sub(other, cost, out=work)
    work.div_(level)
    largest = work.amax(dim=along, keepdim=True)
    work.sub_(largest).exp_()
    return -level * (largest + work.mean(dim=along, keepdim=True).log())


def _levels(epsilon: float) -> list[float]:
    """1, 1/2, 1/4 ... and `epsilon` at last."""
    levels = []
    level = 1.0
    while level > epsilon:
        levels.append(level)
        level /= 2
    return [*levels, epsilon]


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances [n, N, N] of rows [n, N, D]."""
    made = torch.baddbmm(a.square().sum(dim=2, keepdim=True), a, b.transpose(1, 2), alpha=-2)
    made += b.square().sum(dim=2)[:, None]
    return made.clamp_(min=0)


def _places(size: tuple[int, int], weight: float, device: torch.device) -> Tensor | None:
    """What moving costs, [1, N, N]: `weight` times the squared distance, a frame's height and width being 1."""
    if not weight:
        return None
    height, width = size
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    at = torch.stack([y.flatten(), x.flatten()], dim=1).to(device)
    return weight * _squares(at[None], at[None])
