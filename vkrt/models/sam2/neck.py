"""The feature pyramid neck of SAM 2 and the image encoder that holds it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vkrt.models.sam2.config import Sam2Config
from vkrt.models.sam2.hiera import Hiera

__all__ = ["FpnNeck", "ImageEncoder"]

# Counted from the finest map: only strides 16 and 32 are merged, the finer two stay lateral.
TOP_DOWN_LEVELS = (2, 3)


class Lateral(nn.Module):
    """Project one feature map to the width of the neck with a 1x1 convolution."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim_in, dim_out, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class FpnNeck(nn.Module):
    """Merge the trunk's feature maps top down (https://arxiv.org/abs/1612.03144)."""

    def __init__(self, dims: tuple[int, ...], hidden_dim: int) -> None:
        super().__init__()
        # Checkpoints store the coarsest lateral first.
        self.convs = nn.ModuleList(Lateral(dim, hidden_dim) for dim in reversed(dims))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Return maps (B, hidden_dim, ...) of strides 4, 8 and 16, finest first."""
        coarsest = len(features) - 1
        merged: list[Tensor] = []
        for level in range(coarsest, -1, -1):
            lateral = self.convs[coarsest - level](features[level])
            if level in TOP_DOWN_LEVELS and level != coarsest:
                lateral = lateral + F.interpolate(merged[0], scale_factor=2.0, mode="nearest")
            merged.insert(0, lateral)
        # SAM 2 drops the coarsest map (scalp = 1); its content has flowed into stride 16.
        return merged[:-1]


class ImageEncoder(nn.Module):
    """Encode normalized pixels (B, 3, S, S) into three feature maps, finest first."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        self.trunk = Hiera(config.trunk)
        self.neck = FpnNeck(config.trunk.dims, config.hidden_dim)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return self.neck(self.trunk(pixels))
