"""Window order loses no token, pools as a grid does, and stands for attention with padding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vkrt.models.sam2.hiera import MultiScaleAttention
from vkrt.models.sam2.windows import Windows

EVEN = st.integers(1, 9).map(lambda half: 2 * half)


@settings(max_examples=60, deadline=None)
@given(height=EVEN, width=EVEN, side=EVEN, batch=st.integers(1, 2))
def test_order_and_back(height: int, width: int, side: int, batch: int) -> None:
    windows = Windows(height, width, side)
    grid = torch.arange(batch * height * width * 3.0).view(batch, height, width, 3)
    tokens = windows.from_grid(grid)
    assert tokens.shape == (batch, height * width, 3)
    assert torch.equal(windows.to_grid(tokens), grid)
    assert sum(group.tokens for group in windows.groups()) == height * width
    for group, part in zip(windows.groups(), windows.split(tokens), strict=True):
        first = part[0, : group.height * group.width, 0]
        corner = grid[0, group.rows, group.columns, 0][: group.height, : group.width]
        assert torch.equal(first.sort().values, corner.flatten())
        assert group.missing == side**2 - group.height * group.width


@settings(max_examples=40, deadline=None)
@given(height=EVEN, width=EVEN, side=EVEN)
def test_pooling_is_that_of_the_grid(height: int, width: int, side: int) -> None:
    windows = Windows(height, width, side)
    grid = torch.randn(2, height, width, 3)
    wanted = F.max_pool2d(grid.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    pooled = windows.pool(windows.from_grid(grid))
    assert torch.equal(windows.pooled().to_grid(pooled), wanted)


def padded_attention(attention: MultiScaleAttention, grid: Tensor, side: int) -> Tensor:
    """Attend window by window over a grid (1, H, W, C) padded with zeros, as upstream does."""
    height, width = grid.shape[1:3]
    padded = F.pad(grid, (0, 0, 0, -width % side, 0, -height % side))
    out = torch.empty(1, *padded.shape[1:3], attention.proj.in_features)
    for top in range(0, padded.shape[1], side):
        for left in range(0, padded.shape[2], side):
            window = padded[:, top : top + side, left : left + side].flatten(1, 2)
            q, k, v = (
                t.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
                for t in attention.qkv(window).chunk(3, dim=-1)
            )
            weights = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(dim=-1)
            seen = (weights @ v).transpose(1, 2).flatten(2).unflatten(1, (side, side))
            out[:, top : top + side, left : left + side] = seen
    return attention.proj(out)[:, :height, :width]


@pytest.mark.parametrize(
    ("height", "width", "side"),
    [(8, 8, 4), (10, 8, 4), (10, 14, 4), (6, 6, 14), (64, 64, 14)],
    ids=["whole", "one edge", "both edges", "one window", "sam2.1-tiny"],
)
@torch.inference_mode()
def test_missing_tokens_count_as_upstreams_padding(height: int, width: int, side: int) -> None:
    torch.manual_seed(0)
    attention = MultiScaleAttention(16, 32, num_heads=4, is_global=False, pool_queries=False)
    torch.nn.init.normal_(attention.qkv.bias)
    grid = torch.randn(1, height, width, 16)
    windows = Windows(height, width, side)
    got = windows.to_grid(attention(windows.from_grid(grid), windows))
    torch.testing.assert_close(got, padded_attention(attention, grid, side), rtol=1e-4, atol=1e-5)
