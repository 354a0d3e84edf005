"""Optimisers and moving averages whose whole state is tensors with names, made with them and never later."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from training.config import Average, Optimizer
from training.distributed import whole
from training.models.networks import Denoiser


class Updates:
    """AdamW over named weights, which are made trainable; the rate rises over the first `warmup` updates."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], options: Optimizer) -> None:
        self.named = dict(named)
        self._options = options
        for parameter in self.named.values():
            parameter.requires_grad_(True)
        self._adam = torch.optim.AdamW(
            self.named.values(), lr=options.lr, betas=options.betas, weight_decay=options.weight_decay
        )
        # As AdamW itself would at the first step: here, so that what a checkpoint holds does not depend on when.
        for parameter in self.named.values():
            self._adam.state[parameter] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    @property
    def count(self) -> int:
        """How many updates there were."""
        return max((int(state["step"]) for state in self._adam.state.values()), default=0)

    @count.setter
    def count(self, count: int) -> None:
        for state in self._adam.state.values():
            state["step"].fill_(float(count))

    def step(self) -> float:
        """Update by the gradients that were added up, and forget them; the norm that they had.

        Raises FloatingPointError, and changes nothing, where that is not finite.
        """
        weights = [parameter for parameter in self.named.values() if parameter.grad is not None]
        norm = float(whole(nn.utils.clip_grad_norm_(weights, self._options.clip)))
        if not norm < float("inf"):
            raise FloatingPointError("a gradient is not finite")
        risen = min(1.0, (self.count + 1) / (self._options.warmup + 1))
        for group in self._adam.param_groups:
            group["lr"] = self._options.lr * risen
        self._adam.step()
        self._adam.zero_grad()
        return norm

    def tensors(self, role: str) -> dict[str, Tensor]:
        """Weights and moments, by name under a role, for a checkpoint."""
        found = {}
        for name, parameter in self.named.items():
            found[f"{role}.{name}"] = parameter.detach()
            for moment in ("exp_avg", "exp_avg_sq"):
                found[f"{moment}.{role}.{name}"] = self._adam.state[parameter][moment]
        return found


class MovingAverage:
    """The moving average of what is trained of a network, in float32."""

    def __init__(self, network: Denoiser, options: Average) -> None:
        self._network, self._options = network, options
        self._named = dict(network.trained())
        self._shadow = {name: parameter.detach().float().clone() for name, parameter in self._named.items()}

    def follow(self, updates: int) -> None:
        """Take the weights as they are after so many updates into account."""
        decay = self._options.decay if updates > self._options.start else 0.0
        with torch.no_grad():
            for name, parameter in self._named.items():
                self._shadow[name].mul_(decay).add_(parameter.detach().float(), alpha=1 - decay)

    @contextmanager
    def worn(self) -> Iterator[None]:
        """The network with the average in place of its weights, for as long as this lasts."""
        kept = {name: parameter.detach().clone() for name, parameter in self._named.items()}
        self._put(self._shadow)
        try:
            yield
        finally:
            self._put(kept)

    def tensors(self, role: str) -> dict[str, Tensor]:
        """The average, by name under a role, for a checkpoint."""
        return {f"average.{role}.{name}": tensor for name, tensor in self._shadow.items()}

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._named.items():
                parameter.copy_(weights[name])
        self._network.changed()
