"""Antialiased bilinear shrinking as a fixed matrix: it exports to any runtime."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["shrinking_matrix"]


def shrinking_matrix(size: int, factor: int) -> Tensor:
    """Return the matrix (size / factor, size) float32 that shrinks one axis of a picture.

    Pixel j counts for pixel i of the result by 1 - |distance of their centres| / factor, where
    that is positive; the weights of each i sum to 1. Twice, for rows and columns, it is
    torch's bilinear interpolation with antialias.
    """
    centres = factor * (torch.arange(size // factor, dtype=torch.float64) + 0.5)
    pixels = torch.arange(size, dtype=torch.float64) + 0.5
    weights = (1 - (pixels - centres.unsqueeze(1)).abs() / factor).clamp(min=0)
    return (weights / weights.sum(dim=1, keepdim=True)).float()
