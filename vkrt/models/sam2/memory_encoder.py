"""The memory encoder of SAM 2: a frame and the mask of an object in it become a memory."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vkrt.models.sam2.config import Sam2Config
from vkrt.models.sam2.layers import LayerNorm2d

__all__ = ["MemoryEncoder"]

DOWNSAMPLE_STEPS = 4
FUSER_LAYERS = 2


class MaskDownsampler(nn.Module):
    """Bring masks (N, 1, S, S) to the grid of the image embedding, (N, G, G, C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for _ in range(DOWNSAMPLE_STEPS):
            layers += [
                nn.Conv2d(channels, channels * 4, kernel_size=3, stride=2, padding=1),
                LayerNorm2d(channels * 4),
                nn.GELU(),
            ]
            channels *= 4
        layers.append(nn.Conv2d(channels, dim, kernel_size=1))
        self.encoder = nn.Sequential(*layers)

    def forward(self, masks: Tensor) -> Tensor:
        *steps, last = self.encoder
        x = masks
        for step in steps:
            x = step(x)
        return project(last, x.permute(0, 2, 3, 1))


class FuserBlock(nn.Module):
    """Run a ConvNeXt block (https://arxiv.org/abs/2201.03545) on maps (N, G, G, C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(1e-6 * torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.norm(self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return x + self.gamma * self.pwconv2(F.gelu(self.pwconv1(pixels)))


class Fuser(nn.Module):
    """Mix a frame's features with its downsampled mask."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FuserBlock(dim) for _ in range(FUSER_LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class MemoryEncoder(nn.Module):
    """Turn a frame and the masks of N objects into memories."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.mask_downsampler = MaskDownsampler(dim)
        self.pix_feat_proj = nn.Conv2d(dim, dim, kernel_size=1)
        self.fuser = Fuser(dim)
        self.out_proj = nn.Conv2d(dim, config.memory.mem_dim, kernel_size=1)

    def forward(self, image: Tensor, masks: Tensor) -> Tensor:
        """Encode memories.

        Args:
            image: (1 or N, L, C) raw embedding of the L = G * G pixels of stride 16; that of one
                picture is projected once for all objects.
            masks: (N, 1, S, S) in the scale of mask logits, S = 16 G.

        Returns:
            (N, L, M)
        """
        grid = math.isqrt(image.shape[1])
        features = project(self.pix_feat_proj, image).unflatten(1, (grid, grid))
        mixed = self.fuser(features + self.mask_downsampler(masks))
        return project(self.out_proj, mixed).flatten(1, 2)


def project(convolution: nn.Module, x: Tensor) -> Tensor:
    """Apply a 1x1 convolution to maps whose channels are last."""
    assert isinstance(convolution, nn.Conv2d)
    return F.linear(x, convolution.weight.flatten(1), convolution.bias)
