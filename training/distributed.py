"""The processes of a run: one, or as many as torchrun starts, each with its shard of every network (FSDP2).

One process is a world of one, so that nothing here is a special case.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from pipeline.errors import UsageError


@dataclass(frozen=True, slots=True)
class World:
    """This process among those of the run, and where it computes."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether it is the one that writes and speaks."""
        return self.rank == 0

    def gathered(self, value: Any) -> list[Any]:
        """Something of every process, by rank; it must be picklable, and every process must ask."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found


@contextmanager
def world() -> Iterator[World]:
    """The processes that torchrun started, or this one alone; on the GPU of this process where there are any.

    Raises UsageError where torchrun started more processes on this machine than it has GPUs.
    """
    local, cuda = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.is_available()
    if cuda and local >= torch.cuda.device_count():
        raise UsageError(f"process {local + 1} of this machine has no GPU: there are {torch.cuda.device_count()}")
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    # On a CPU objects and barriers go by gloo too.
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def sharded(
    module: Any,
    blocks: Iterable[nn.Module],
    dtype: torch.dtype,
    device: torch.device,
    exact: Iterable[nn.Module] = (),
) -> Any:
    """The same module on a device, each of its blocks, and what is left, a shard in every process.

    Weights are gathered in `dtype`, those of its `exact` parts in float32; gradients are added up in float32, and are
    means over the processes.
    """
    # In what it computes its input is cast by autocast: FSDP would cast timesteps too.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    # What the networks return is a view, and nothing here changes it in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for part in exact:
        fully_shard(part, mp_policy=replace(policy, param_dtype=torch.float32))
    for block in blocks:
        fully_shard(block, mp_policy=policy)
    fully_shard(module, mp_policy=policy)
    # On a GPU this moved what it sharded; whole networks never are on one.
    module.to(device)
    return module


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ended: torch has an error of its own for a GPU's alone."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A parameter or its gradient as one tensor, gathered from all processes; all must ask."""
    full = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()
