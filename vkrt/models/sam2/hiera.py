"""The Hiera image trunk of SAM 2 (https://arxiv.org/abs/2306.00989), channels last."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vkrt.models.sam2.config import HieraConfig
from vkrt.models.sam2.layers import MLP
from vkrt.models.sam2.windows import Windows, join

__all__ = ["Hiera"]

PATCH_STRIDE = 4


class MultiScaleAttention(nn.Module):
    """Attend within windows or over the picture; a later stage's first block pools its queries."""

    def __init__(
        self, dim: int, dim_out: int, num_heads: int, is_global: bool, pool_queries: bool
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim_out // num_heads) ** -0.5
        self.is_global = is_global
        self.pool_queries = pool_queries
        self.qkv = nn.Linear(dim, dim_out * 3)
        self.proj = nn.Linear(dim_out, dim_out)

    def forward(self, x: Tensor, windows: Windows) -> Tensor:
        # x: (B, T, C) in window order -> (B, T or T/4, dim_out)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        out = windows
        if self.pool_queries:
            q, out = windows.pool(q), windows.pooled()
        if self.is_global:
            return self.proj(self.attend(q, k, v, 1, 0))
        groups = windows.groups()
        parts = [
            self.attend(q, k, v, group.count, group.missing)
            for q, k, v, group in zip(
                out.split(q), windows.split(k), windows.split(v), groups, strict=True
            )
        ]
        return self.proj(join(parts, dim=1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, count: int, missing: int) -> Tensor:
        """Attend within each of `count` windows that follow one another in (B, tokens, C)."""
        batch = q.shape[0]
        q, k, v = (
            t.unflatten(1, (count, -1)).flatten(0, 1).unflatten(-1, (self.num_heads, -1))
            for t in (q, k, v)
        )
        bias: Tensor | None = None
        if missing:
            # Upstream pads with zeros before qkv: every token beyond the edge has the bias as its
            # key and value. n equal keys weigh as much as one whose logit is raised by log n.
            _, key, value = self.qkv.bias.to(q.dtype).view(3, 1, 1, self.num_heads, -1).unbind()
            k = torch.cat((k, key.expand(k.shape[0], -1, -1, -1)), dim=1)
            v = torch.cat((v, value.expand(v.shape[0], -1, -1, -1)), dim=1)
            bias = F.pad(q.new_zeros(1, k.shape[1] - 1), (0, 1), value=math.log(missing))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)
        return x.transpose(1, 2).flatten(2).unflatten(0, (batch, -1)).flatten(1, 2)

    @torch.no_grad()
    def fold_constants(self) -> None:
        """Bring into the weights, in place, what need not be computed for every picture.

        The scale goes to the queries. The bias of the keys adds the same to every logit of a
        query, which the softmax drops; that of the values, as its rows sum to 1, goes through to
        the output. A token beyond the edge is then a key and a value of zeros.
        """
        query_bias, key_bias, value_bias = self.qkv.bias.chunk(3)
        self.qkv.weight[: len(query_bias)].mul_(self.scale)
        query_bias.mul_(self.scale)
        key_bias.zero_()
        self.proj.bias.add_(self.proj.weight @ value_bias)
        value_bias.zero_()
        self.scale = 1.0


class MultiScaleBlock(nn.Module):
    """Run attention and an MLP, both with residuals, halving the grid where it pools."""

    def __init__(
        self, dim: int, dim_out: int, num_heads: int, window: int, pool_queries: bool
    ) -> None:
        super().__init__()
        self.window = window
        self.pool_queries = pool_queries
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = MultiScaleAttention(dim, dim_out, num_heads, not window, pool_queries)
        self.norm2 = nn.LayerNorm(dim_out, eps=1e-6)
        self.mlp = MLP(dim_out, 4 * dim_out, dim_out, num_layers=2, activation=F.gelu)
        if dim != dim_out:
            self.proj = nn.Linear(dim, dim_out)
        self.changes_dim = dim != dim_out

    def forward(self, x: Tensor, windows: Windows) -> Tensor:
        # x: (B, T, C) in window order
        shortcut = x
        x = self.norm1(x)
        if self.changes_dim:
            shortcut = self.proj(x)
            if self.pool_queries:
                shortcut = windows.pool(shortcut)
        x = shortcut + self.attn(x, windows)
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

    folded_position: Tensor | None

    def __init__(self, config: HieraConfig) -> None:
        super().__init__()
        dims, bkg, window = config.dims, config.pos_embed_bkg, config.window_spec[0]
        self.patch_embed = PatchEmbed(config.embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.embed_dim, bkg, bkg))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, config.embed_dim, window, window))
        self.register_buffer("folded_position", None, persistent=False)
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

    def fold_position(self, image_size: int) -> None:
        """Compute the position embedding of pictures of one size for good."""
        grid = image_size // PATCH_STRIDE
        with torch.no_grad():
            self.folded_position = self.position_embedding(grid, grid).contiguous()

    def position_embedding(self, height: int, width: int) -> Tensor:
        """Return the absolute position embedding (1, height, width, C) of a token grid."""
        if self.folded_position is not None:
            return self.folded_position
        background = F.interpolate(self.pos_embed, size=(height, width), mode="bicubic")
        window = self.pos_embed_window
        repeats = (1, 1, height // window.shape[2], width // window.shape[3])
        return (background + window.tile(repeats)).permute(0, 2, 3, 1)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return the features (B, S/4/2**i, S/4/2**i, C_i) of the stages, finest first."""
        x = self.patch_embed(pixels)
        x = x + self.position_embedding(x.shape[1], x.shape[2])
        blocks = [cast(MultiScaleBlock, block) for block in self.blocks]
        windows = Windows(x.shape[1], x.shape[2], blocks[0].window)
        x = windows.from_grid(x)
        features = []
        for index, block in enumerate(blocks):
            # Global attention asks for no order, and pooling keeps the one it finds: tokens are
            # moved only where the size of the windows changes.
            if block.window not in (0, windows.side):
                grid = windows.to_grid(x)
                windows = Windows(windows.height, windows.width, block.window)
                x = windows.from_grid(grid)
            x = block(x, windows)
            if block.pool_queries:
                windows = windows.pooled()
            if index in self.stage_ends:
                features.append(windows.to_grid(x))
        return features
