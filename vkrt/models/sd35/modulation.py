"""Adaptive layer norm (https://arxiv.org/abs/2212.09748): a step and a prompt shift and scale."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vkrt.models.sd35.layout import is_scale

__all__ = ["Modulation", "join", "modulate", "normalize", "split_parts"]

EPS = 1e-6


class Modulation(nn.Module):
    """Make the parts of one stream, as vkrt.models.sd35.layout orders them."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        # The SiLU that official weights count as 0 gives the same in each stream: it comes before.
        self.adaLN_modulation = nn.Sequential(nn.Identity(), nn.Linear(dim, width))

    def forward(self, activated: Tensor) -> Tensor:
        """Map (steps, batch, D) to (steps, batch, width); scales have 1 added."""
        parts = self.adaLN_modulation(activated).unflatten(-1, (-1, activated.shape[-1]))
        ones = [[float(is_scale(part))] for part in range(parts.shape[-2])]
        return (parts + torch.tensor(ones, dtype=parts.dtype, device=parts.device)).flatten(-2)


def join(streams: Iterable[nn.Module], activated: Tensor) -> Tensor:
    """Return the table (steps, batch, M) that all streams together make of (steps, batch, D)."""
    return torch.cat([stream(activated) for stream in streams], dim=-1)


def split_parts(columns: Tensor, dim: int) -> tuple[Tensor, ...]:
    """Return the parts of a stream, (B, 1, D) each, of its columns (B, n * D)."""
    return columns.unflatten(1, (-1, 1, dim)).unbind(1)


def normalize(x: Tensor) -> Tensor:
    """Return tokens (B, T, D) with mean 0 and variance 1 each."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def modulate(normed: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return normed * scale + shift of (B, T, D) by (B, 1, D); a scale has 1 added already."""
    return torch.addcmul(shift, normed, scale)
