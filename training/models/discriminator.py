"""The judge of the adversarial loss: a small head on the fake score's features.

For each depth a learned register looks at all tokens by cross-attention; what the registers saw, and the noise level,
give one logit for a clip. [VDOT, arXiv:2512.06802, from its description: three registers of width 512, 8 heads]
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Cosines of the noise level that the head is told.
_WAVES = 16


class Discriminator(nn.Module):  # type: ignore[misc]
    """Features [B, N, dim] of `depths` depths and noise levels [B] -> logits [B], float32."""

    def __init__(self, dim: int, depths: int, width: int = 512, heads: int = 8) -> None:
        super().__init__()
        self.looks = nn.ModuleList(_Look(dim, width, heads) for _ in range(depths))
        self.judge = nn.Sequential(
            nn.LayerNorm(depths * width + _WAVES),
            nn.Linear(depths * width + _WAVES, width),
            nn.SiLU(),
            nn.Linear(width, 1),
        )

    def forward(self, features: Sequence[Tensor], sigma: Tensor) -> Tensor:
        """The logits, higher for what seems real."""
        with torch.autocast(sigma.device.type, enabled=False):
            seen = [look(tokens.float()) for look, tokens in zip(self.looks, features, strict=True)]
            waves = torch.cos(math.pi * torch.arange(_WAVES, device=sigma.device) * sigma.float()[:, None])
            logits: Tensor = self.judge(torch.cat([*seen, waves], dim=1))[:, 0]
        return logits


class _Look(nn.Module):  # type: ignore[misc]
    """One register's look at the tokens of one depth."""

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
        known = self.norm(tokens)
        asked = self.register.expand(len(tokens), -1, -1)
        seen = asked + self.attend(asked, known, known, need_weights=False)[0]
        found: Tensor = (seen + self.think(seen))[:, 0]
        return found
