"""What turns patches, noise levels and pooled text into vectors of the transformer's width."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FREQUENCIES", "PatchEmbedder", "VectorEmbedder", "encode_timesteps"]

FREQUENCIES = 128
LONGEST_PERIOD = 10_000.0


class PatchEmbedder(nn.Module):
    """Map patches to tokens: a convolution whose stride is its size, as a product."""

    def __init__(self, channels: int, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, stride=patch)

    def forward(self, patches: Tensor) -> Tensor:
        """Map (B, P, channels * patch^2), in the order (channel, row, column), to (B, P, D)."""
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class VectorEmbedder(nn.Module):
    """Map vectors (..., inputs) to (..., D) by two linear layers."""

    def __init__(self, inputs: int, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(inputs, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


def encode_timesteps(timesteps: Tensor) -> Tensor:
    """Return the cosines, then the sines of timesteps (steps,) at FREQUENCIES frequencies.

    They are computed in float32 at least, which a timestep of 1000 needs.

    Returns:
        (steps, 2 * FREQUENCIES), of the dtype of the timesteps.
    """
    number = torch.arange(FREQUENCIES, dtype=torch.float32, device=timesteps.device)
    frequencies = torch.exp(-math.log(LONGEST_PERIOD) * number / FREQUENCIES)
    angles = timesteps.unsqueeze(1) * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)
