"""The discriminator of the adversarial loss: a small head on the fake score's features.

For each depth a learned register attends to all tokens by cross-attention; the outputs of the registers and the noise
level give one logit for a clip. [VDOT, arXiv:2512.06802, from its description: three registers of width 512, 8 heads]
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Cosine features of the noise level.
_WAVES = 16


class Discriminator(nn.Module):  # type: ignore[misc]
    """Features [B, N, dim] of `depths` depths and noise levels [B] -> logits [B], float32."""

    def __init__(self, dim: int, depths: int, width: int = 512, heads: int = 8) -> None:
        super().__init__()
        self.looks = nn.ModuleList(_RegisterAttention(dim, width, heads) for _ in range(depths))
        self.judge = nn.Sequential(
            nn.LayerNorm(depths * width + _WAVES),
            nn.Linear(depths * width + _WAVES, width),
            nn.SiLU(),
            nn.Linear(width, 1),
        )

    def forward(self, features: Sequence[Tensor], sigma: Tensor) -> Tensor:
        """The logits, higher for real clips."""
        with torch.autocast(sigma.device.type, enabled=False):
            register_outputs = [
                attention(tokens.float()) for attention, tokens in zip(self.looks, features, strict=True)
            ]
            waves = torch.cos(math.pi * torch.arange(_WAVES, device=sigma.device) * sigma.float()[:, None])
            logits: Tensor = self.judge(torch.cat([*register_outputs, waves], dim=1))[:, 0]
        return logits


class _RegisterAttention(nn.Module):  # type: ignore[misc]
    """A register that attends to the tokens of one depth."""

    def __init__(self, dim: int, width: int, heads: int) -> None:
        super().__init__()
        self.register = nn.Parameter(torch.randn(1, 1, width) / width**0.5)
        # Features differ in scale from depth to depth and from network to network.
        self.norm = nn.LayerNorm(dim)
        self.attend = nn.MultiheadAttention(width, heads, kdim=dim, vdim=dim, batch_first=True)
        self.think = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, N, dim] -> [B, width]."""
        keys = self.norm(tokens)
        queries = self.register.expand(len(tokens), -1, -1)
        attended = queries + self.attend(queries, keys, keys, need_weights=False)[0]
        output: Tensor = (attended + self.think(attended))[:, 0]
        return output
