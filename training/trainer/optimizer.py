"""AdamW and the EMA of weights, with all of their state in named tensors that exist from the start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from training.config import EMA, Optimizer
from training.distributed import gather_full_tensor
from training.models.networks import Denoiser


class NamedAdamW:
    """AdamW over named weights, which it makes trainable; the rate warms up over the first `warmup` updates."""

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], options: Optimizer) -> None:
        self.parameters = dict(parameters)
        self._options = options
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self._adam = torch.optim.AdamW(
            self.parameters.values(), lr=options.lr, betas=options.betas, weight_decay=options.weight_decay
        )
        # As AdamW does at its first step: done here so that a checkpoint always holds the same tensors.
        for parameter in self.parameters.values():
            self._adam.state[parameter] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    @property
    def count(self) -> int:
        """The number of updates so far."""
        return max((int(state["step"]) for state in self._adam.state.values()), default=0)

    @count.setter
    def count(self, count: int) -> None:
        for state in self._adam.state.values():
            state["step"].fill_(float(count))

    def step(self) -> float:
        """Update by the accumulated gradients, clear them, and return the norm that they had.

        Raises FloatingPointError, and changes nothing, if the norm is not finite.
        """
        weights = [parameter for parameter in self.parameters.values() if parameter.grad is not None]
        norm = float(gather_full_tensor(nn.utils.clip_grad_norm_(weights, self._options.clip)))
        if not norm < float("inf"):
            raise FloatingPointError("a gradient is not finite")
        warmup_factor = min(1.0, (self.count + 1) / (self._options.warmup + 1))
        for group in self._adam.param_groups:
            group["lr"] = self._options.lr * warmup_factor
        self._adam.step()
        self._adam.zero_grad()
        return norm

    def tensors(self, role: str) -> dict[str, Tensor]:
        """Weights and moments, by name under a role, for a checkpoint."""
        tensors = {}
        for name, parameter in self.parameters.items():
            tensors[f"{role}.{name}"] = parameter.detach()
            for moment in ("exp_avg", "exp_avg_sq"):
                tensors[f"{moment}.{role}.{name}"] = self._adam.state[parameter][moment]
        return tensors


class WeightEMA:
    """The EMA of a network's trained weights, in float32."""

    def __init__(self, network: Denoiser, options: EMA) -> None:
        self._network, self._options = network, options
        self._parameters = dict(network.trained_parameters())
        self._shadow = {name: parameter.detach().float().clone() for name, parameter in self._parameters.items()}

    def update(self, updates: int) -> None:
        """Take in the current weights, after `updates` updates."""
        decay = self._options.decay if updates > self._options.start else 0.0
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                self._shadow[name].mul_(decay).add_(parameter.detach().float(), alpha=1 - decay)

    @contextmanager
    def swap_weights(self) -> Iterator[None]:
        """Put the EMA in place of the network's weights for the duration of the context."""
        trained = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._copy_weights(self._shadow)
        try:
            yield
        finally:
            self._copy_weights(trained)

    def tensors(self, role: str) -> dict[str, Tensor]:
        """The EMA, by name under a role, for a checkpoint."""
        return {f"average.{role}.{name}": tensor for name, tensor in self._shadow.items()}

    def _copy_weights(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(weights[name])
        self._network.reshard()
