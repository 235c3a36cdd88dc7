"""Rotary positions in two axes, in real arithmetic (https://arxiv.org/abs/2104.09864)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Rotary", "project_apart"]

THETA = 10_000.0


class Rotary(nn.Module):
    """Turn channel pairs of the pixels of a grid by angles that grow with x, then with y.

    Neighbouring channels of a projection are a pair. They are computed and kept apart, all first
    ones before all second ones: a product of queries with keys only needs both in one order, and
    to take neighbours apart afterwards would be a pass over all keys.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, side: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        frequencies = 1.0 / THETA ** (torch.arange(0, half, 2) / half)
        places = torch.arange(side).unsqueeze(1) * frequencies
        x, y = places.repeat(side, 1), places.repeat_interleave(side, 0)
        angles = torch.cat((x, y), dim=-1)
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)

    def forward(self, projection: nn.Linear, x: Tensor) -> Tensor:
        """Project pixels (..., L, C_in) and turn them: (..., L, C), pairs apart."""
        first, second = project_apart(projection, x)
        turned = (
            first * self.cosine - second * self.sine,
            first * self.sine + second * self.cosine,
        )
        return torch.cat(turned, dim=-1)


def project_apart(projection: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the even and the odd channels, (..., C/2) each, of a projection of x (..., C_in)."""
    weight, bias = projection.weight.unflatten(0, (-1, 2)), projection.bias.unflatten(0, (-1, 2))
    return F.linear(x, weight[:, 0], bias[:, 0]), F.linear(x, weight[:, 1], bias[:, 1])
