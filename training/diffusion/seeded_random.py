"""Random numbers of a training run, each from a generator of its own that is named by what it is for.

What a clip is given at a step depends on the run's seed, the step and the clip's place in it, and on nothing else: not
on the number of ranks, nor on what was drawn before. So there is no state to save, and going on repeats a run exactly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generator(seed: int, *named: int | str) -> torch.Generator:
    """A generator on the CPU, whose numbers are the same for every kind of device."""
    digest = hashlib.blake2b(repr((seed, named)).encode(), digest_size=8).digest()
    made = torch.Generator()
    # The widest seed that the generator takes.
    made.manual_seed(int.from_bytes(digest, "little") >> 1)
    return made


def normal(shape: Sequence[int], device: torch.device, seed: int, *named: int | str) -> Tensor:
    """Standard normal float32 of a shape."""
    return torch.randn(*shape, generator=generator(seed, *named)).to(device)


def uniform(count: int, seed: int, *named: int | str) -> Tensor:
    """So many numbers in [0, 1): float64 [count], on the CPU."""
    return torch.rand(count, generator=generator(seed, *named), dtype=torch.float64)


def integer(below: int, seed: int, *named: int | str) -> int:
    """A whole number in [0, below)."""
    return int(torch.randint(below, (), generator=generator(seed, *named)))
