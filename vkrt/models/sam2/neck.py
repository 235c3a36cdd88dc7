"""The feature pyramid neck of SAM 2 and the image encoder that holds it."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from vkrt.models.sam2.config import Sam2Config
from vkrt.models.sam2.hiera import Hiera

__all__ = ["FpnNeck", "ImageEncoder"]


class Lateral(nn.Module):
    """Project features (..., dim_in) to the width of the neck."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim_in, dim_out, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.conv.weight.flatten(1), self.conv.bias)

    def then(self, x: Tensor, last: nn.Conv2d) -> Tensor:
        """Return what the 1x1 convolution `last` makes of the projection, (..., its channels).

        Nothing stands between the two, so that one product with both weights will do; it is
        much narrower than the neck.
        """
        weight = last.weight.flatten(1)
        assert self.conv.bias is not None
        bias = F.linear(self.conv.bias, weight, last.bias)
        return F.linear(x, weight @ self.conv.weight.flatten(1), bias)


class FpnNeck(nn.Module):
    """Merge the trunk's features top down (https://arxiv.org/abs/1612.03144).

    SAM 2 merges strides 16 and 32 only, and drops the coarsest map once its content has flowed
    into the finer one (scalp = 1).
    """

    def __init__(self, dims: tuple[int, ...], hidden_dim: int) -> None:
        super().__init__()
        # Checkpoints store the coarsest lateral first.
        self.convs = nn.ModuleList(Lateral(dim, hidden_dim) for dim in reversed(dims))

    def lateral(self, level: int) -> Lateral:
        """Return the projection of a level; 0 is the finest."""
        return cast(Lateral, self.convs[len(self.convs) - 1 - level])

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return features (B, H, W, hidden_dim) of stride 16 of the trunk's, finest first."""
        coarse = self.lateral(3)(features[3]).permute(0, 3, 1, 2)
        coarse = F.interpolate(coarse, scale_factor=2.0, mode="nearest")
        return self.lateral(2)(features[2]) + coarse.permute(0, 2, 3, 1)


class ImageEncoder(nn.Module):
    """Hold the trunk and the neck."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        self.trunk = Hiera(config.trunk)
        self.neck = FpnNeck(config.trunk.dims, config.hidden_dim)
