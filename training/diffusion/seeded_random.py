"""Random numbers of a training run, each from its own generator, seeded by its purpose.

A clip's noise at a step depends only on the run's seed, the step and the clip's position in it: not on the number of
ranks, nor on earlier draws. So there is no state to save, and a resumed run repeats the original exactly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generator(seed: int, *names: int | str) -> torch.Generator:
    """A generator on the CPU, so that its numbers are the same on every kind of device."""
    digest = hashlib.blake2b(repr((seed, names)).encode(), digest_size=8).digest()
    rng = torch.Generator()
    # The widest seed that the generator takes: 63 bits.
    rng.manual_seed(int.from_bytes(digest, "little") >> 1)
    return rng


def normal(shape: Sequence[int], device: torch.device, seed: int, *names: int | str) -> Tensor:
    """Standard normal numbers: float32 of a shape."""
    return torch.randn(*shape, generator=generator(seed, *names)).to(device)


def uniform(count: int, seed: int, *names: int | str) -> Tensor:
    """Uniform numbers in [0, 1): float64 [count], on the CPU."""
    return torch.rand(count, generator=generator(seed, *names), dtype=torch.float64)


def integer(high: int, seed: int, *names: int | str) -> int:
    """An integer in [0, high)."""
    return int(torch.randint(high, (), generator=generator(seed, *names)))
