"""The processes of a run: one, or those that torchrun starts, each with its shard of every network (FSDP2).

A single process is a world of size one, so it needs no special case.
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
    """This process among those of the run, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and logs."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank. Values must be picklable, and every process must call this."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


@contextmanager
def join_world() -> Iterator[World]:
    """Join the processes that torchrun started, or be alone; each uses its own GPU if there are any.

    Raises UsageError if torchrun started more processes on this machine than it has GPUs.
    """
    local, cuda = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.is_available()
    if cuda and local >= torch.cuda.device_count():
        raise UsageError(f"process {local + 1} of this machine has no GPU: there are {torch.cuda.device_count()}")
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    # Objects and barriers on a CPU use gloo as well.
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        with warnings.catch_warnings():
            # The networks return views, and nothing here changes them in place.
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
            yield World(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def shard_module(
    module: Any,
    blocks: Iterable[nn.Module],
    dtype: torch.dtype,
    device: torch.device,
    exact: Iterable[nn.Module] = (),
) -> Any:
    """The same module on a device, with its blocks and the remaining weights sharded over all processes.

    Weights are gathered in `dtype`, those of its `exact` parts in float32; gradients are reduced in float32 to means
    over the processes.
    """
    # Autocast casts the inputs: FSDP would cast timesteps too.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for part in exact:
        fully_shard(part, mp_policy=replace(policy, param_dtype=torch.float32))
    for block in blocks:
        fully_shard(block, mp_policy=policy)
    fully_shard(module, mp_policy=policy)
    # FSDP has moved its shards already; this moves the rest. A GPU never holds an unsharded network.
    module.to(device)
    return module


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch has an error class of its own only for a GPU's."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error))


def gather_full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A parameter or its gradient as one tensor, gathered from all processes; every process must call this."""
    full = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()
