"""The memory encoder of SAM 2: parameters, so that every official checkpoint loads whole."""

from __future__ import annotations

import torch
from torch import nn

from vkrt.models.sam2.config import Sam2Config
from vkrt.models.sam2.layers import LayerNorm2d

__all__ = ["MemoryEncoder"]

DOWNSAMPLE_STEPS = 4
FUSER_LAYERS = 2


class MaskDownsampler(nn.Module):
    """Hold the strided convolutions that bring a mask to the grid of the image embedding."""

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


class FuserBlock(nn.Module):
    """Hold a ConvNeXt block (https://arxiv.org/abs/2201.03545)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = LayerNorm2d(dim)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(1e-6 * torch.ones(dim))


class Fuser(nn.Module):
    """Hold the blocks that mix a frame's features with its downsampled mask."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FuserBlock(dim) for _ in range(FUSER_LAYERS))


class MemoryEncoder(nn.Module):
    """Hold what turns a frame and its mask into a memory."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.mask_downsampler = MaskDownsampler(dim)
        self.pix_feat_proj = nn.Conv2d(dim, dim, kernel_size=1)
        self.fuser = Fuser(dim)
        self.out_proj = nn.Conv2d(dim, config.memory.mem_dim, kernel_size=1)
