"""What both halves of the autoencoder are built of.

Under inference a tensor that nothing reads again is overwritten or dropped at once: at the finest
level one holds half a gigabyte for each megapixel.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vkrt.kernels.attention import attention
from vkrt.models.sd35.config import VaeConfig

__all__ = ["Middle", "ResidualBlock", "activate", "new_norm"]

EPS = 1e-6


def new_norm(channels: int, config: VaeConfig) -> nn.GroupNorm:
    """Return a group norm as the autoencoder has them."""
    return nn.GroupNorm(config.groups, channels, eps=EPS)


def activate(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """Return silu(norm(x)), of the shape of x (B, C, h, w)."""
    return F.silu(norm(x), inplace=True)


class ResidualBlock(nn.Module):
    """Add two convolutions, each behind a norm and SiLU."""

    def __init__(self, channels: int, channels_out: int, config: VaeConfig) -> None:
        super().__init__()
        self.norm1 = new_norm(channels, config)
        self.conv1 = nn.Conv2d(channels, channels_out, 3, padding=1)
        self.norm2 = new_norm(channels_out, config)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.changes_channels = channels != channels_out
        if self.changes_channels:
            self.nin_shortcut = nn.Conv2d(channels, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        # x: (B, C, h, w) -> (B, D, h, w)
        change = self.conv1(activate(self.norm1, x))
        # A statement of its own: what was normalized is dropped before the next convolution.
        change = activate(self.norm2, change)
        change = self.conv2(change)
        return change.add_(self.nin_shortcut(x) if self.changes_channels else x)


class SelfAttention(nn.Module):
    """Let every pixel attend to all, with one head."""

    def __init__(self, channels: int, config: VaeConfig) -> None:
        super().__init__()
        self.norm = new_norm(channels, config)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        # x: (B, C, h, w), the same out
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        # One head, for the attention that backends know: (B, 1, h * w, C)
        query, key, value = (
            project(part, tokens).unsqueeze(1) for part in (self.q, self.k, self.v)
        )
        read = attention(query, key, value).squeeze(1)
        return x + project(self.proj_out, read).transpose(1, 2).reshape(x.shape)


def project(conv: nn.Conv2d, tokens: Tensor) -> Tensor:
    """Return a 1x1 convolution of pixels given as tokens (B, T, C): channels stay innermost."""
    return F.linear(tokens, conv.weight.flatten(1), conv.bias)


class Middle(nn.Module):
    """Hold the coarsest level: two residual blocks around self-attention."""

    def __init__(self, channels: int, config: VaeConfig) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, config)
        self.attn_1 = SelfAttention(channels, config)
        self.block_2 = ResidualBlock(channels, channels, config)

    def forward(self, x: Tensor) -> Tensor:
        # x: (B, C, h, w), the same out
        return self.block_2(self.attn_1(self.block_1(x)))
