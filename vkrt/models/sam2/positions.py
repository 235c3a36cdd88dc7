"""Sine encodings: of the pixels of a grid, and of distances along a line."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["encode_distances", "encode_grid"]

TEMPERATURE = 10_000.0


def encode_grid(side: int, channels: int) -> Tensor:
    """Encode the pixels of a square grid (https://arxiv.org/abs/2005.12872, appendix A.4).

    Half of the channels tell the row, then half the column: place i of G has the sine and, next to
    it, the cosine of 2 pi (i + 1) / G / 10000 ** (2 j / (channels / 2)) for each j.

    Args:
        side: G, pixels.
        channels: a multiple of 4.

    Returns:
        (side * side, channels) float32, row by row.
    """
    places = torch.arange(1, side + 1) / (side + 1e-6) * (2 * math.pi)
    phases = places.unsqueeze(1) / periods(channels // 2)
    line = torch.stack((phases[:, 0::2].sin(), phases[:, 1::2].cos()), dim=-1).flatten(1)
    rows = line.unsqueeze(1).expand(-1, side, -1)
    return torch.cat((rows, rows.transpose(0, 1)), dim=-1).flatten(0, 1)


def encode_distances(distances: Tensor, channels: int) -> Tensor:
    """Encode distances (...) as (..., channels): first all sines, then all cosines."""
    phases = distances.unsqueeze(-1) / periods(channels // 2).to(distances)
    return torch.cat((phases.sin(), phases.cos()), dim=-1)


def periods(count: int) -> Tensor:
    """Return by how much `count` channels divide a place, the same for each two."""
    pairs = torch.arange(count, dtype=torch.float32) // 2
    return TEMPERATURE ** (2 * pairs / count)
