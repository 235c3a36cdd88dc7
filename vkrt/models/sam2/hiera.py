"""The Hiera image trunk of SAM 2 (https://arxiv.org/abs/2306.00989), channels last."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vkrt.models.sam2.config import HieraConfig
from vkrt.models.sam2.layers import MLP

__all__ = ["Hiera"]

PATCH_STRIDE = 4
QUERY_STRIDE = 2


def window_partition(tokens: Tensor, window: int) -> Tensor:
    """Cut tokens (B, H, W, C) into zero-padded windows (B * windows, window, window, C)."""
    batch, height, width, channels = tokens.shape
    tokens = F.pad(tokens, (0, 0, 0, -width % window, 0, -height % window))
    rows, columns = tokens.shape[1] // window, tokens.shape[2] // window
    tokens = tokens.view(batch, rows, window, columns, window, channels)
    return tokens.transpose(2, 3).reshape(-1, window, window, channels)


def window_unpartition(windows: Tensor, height: int, width: int) -> Tensor:
    """Join windows (B * windows, window, window, C) to tokens (B, height, width, C)."""
    window, channels = windows.shape[1], windows.shape[3]
    rows, columns = -(-height // window), -(-width // window)
    windows = windows.view(-1, rows, columns, window, window, channels)
    tokens = windows.transpose(2, 3).reshape(-1, rows * window, columns * window, channels)
    return tokens[:, :height, :width]


def pool(tokens: Tensor) -> Tensor:
    """Take the maximum over 2x2 tokens: (B, H, W, C) to (B, H/2, W/2, C)."""
    batch, height, width, channels = tokens.shape
    tokens = tokens.view(
        batch, height // QUERY_STRIDE, QUERY_STRIDE, width // QUERY_STRIDE, QUERY_STRIDE, channels
    )
    return tokens.amax(dim=(2, 4))


class MultiScaleAttention(nn.Module):
    """Attend within a window; the first block of a later stage pools its queries 2x2."""

    def __init__(self, dim: int, dim_out: int, num_heads: int, pool_queries: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.pool_queries = pool_queries
        self.qkv = nn.Linear(dim, dim_out * 3)
        self.proj = nn.Linear(dim_out, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        # x: (windows, H, W, C) -> (windows, H', W', dim_out)
        batch, height, width, _ = x.shape
        q, k, v = self.qkv(x).view(batch, height * width, 3, -1).unbind(2)
        if self.pool_queries:
            q = pool(q.reshape(batch, height, width, -1))
            height, width = q.shape[1:3]
            q = q.reshape(batch, height * width, -1)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, height, width, -1))


class MultiScaleBlock(nn.Module):
    """Run windowed attention and an MLP, both with residuals, halving the grid where it pools."""

    def __init__(
        self, dim: int, dim_out: int, num_heads: int, window: int, pool_queries: bool
    ) -> None:
        super().__init__()
        self.window = window
        self.pool_queries = pool_queries
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = MultiScaleAttention(dim, dim_out, num_heads, pool_queries)
        self.norm2 = nn.LayerNorm(dim_out, eps=1e-6)
        self.mlp = MLP(dim_out, 4 * dim_out, dim_out, num_layers=2, activation=F.gelu)
        if dim != dim_out:
            self.proj = nn.Linear(dim, dim_out)
        self.changes_dim = dim != dim_out

    def forward(self, x: Tensor) -> Tensor:
        # x: (B, H, W, C)
        shortcut = x
        x = self.norm1(x)
        if self.changes_dim:
            shortcut = self.proj(x)
            if self.pool_queries:
                shortcut = pool(shortcut)
        if self.window:
            x = self.attn(window_partition(x, self.window))
            x = window_unpartition(x, shortcut.shape[1], shortcut.shape[2])
        else:
            x = self.attn(x)
        x = shortcut + x
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """Turn pixels (B, 3, S, S) into tokens (B, S/4, S/4, C) with a 7x7 convolution."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=7, stride=PATCH_STRIDE, padding=3)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).permute(0, 2, 3, 1)


class Hiera(nn.Module):
    """Encode pixels into four feature maps of strides 4, 8, 16 and 32."""

    def __init__(self, config: HieraConfig) -> None:
        super().__init__()
        dims, bkg, window = config.dims, config.pos_embed_bkg, config.window_spec[0]
        self.patch_embed = PatchEmbed(config.embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.embed_dim, bkg, bkg))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, config.embed_dim, window, window))
        self.blocks = nn.ModuleList()
        self.stage_ends = []
        for stage, depth in enumerate(config.stages):
            for position in range(depth):
                first_of_later_stage = stage > 0 and position == 0
                # The pooling block still sees the finer grid, so it keeps the earlier window.
                source = stage - 1 if first_of_later_stage else stage
                is_global = len(self.blocks) in config.global_blocks
                self.blocks.append(
                    MultiScaleBlock(
                        dim=dims[source],
                        dim_out=dims[stage],
                        num_heads=config.num_heads * 2**stage,
                        window=0 if is_global else config.window_spec[source],
                        pool_queries=first_of_later_stage,
                    )
                )
            self.stage_ends.append(len(self.blocks) - 1)

    def position_embedding(self, height: int, width: int) -> Tensor:
        """Return the absolute position embedding (1, height, width, C) of a token grid."""
        background = F.interpolate(self.pos_embed, size=(height, width), mode="bicubic")
        window = self.pos_embed_window
        repeats = (1, 1, height // window.shape[2], width // window.shape[3])
        return (background + window.tile(repeats)).permute(0, 2, 3, 1)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return the feature maps (B, C_i, S/4/2**i, S/4/2**i) of the stages, finest first."""
        x = self.patch_embed(pixels)
        x = x + self.position_embedding(x.shape[1], x.shape[2])
        features = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.stage_ends:
                features.append(x.permute(0, 3, 1, 2))
        return features
