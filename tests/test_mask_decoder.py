"""The mask decoder's shortcuts give what the plain formulas give."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vkrt.models.sam2.blocks import from_blocks, in_blocks
from vkrt.models.sam2.mask_decoder import Attention, Expand
from vkrt.models.sam2.prompt_encoder import PromptEncoder

PROMPTS, TOKENS, PIXELS, DIM = 3, 7, 25, 32


@pytest.fixture
def attention() -> Attention:
    torch.manual_seed(0)
    made = Attention(DIM, num_heads=4, downsample_rate=2)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made.double()


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@torch.inference_mode()
def test_reading_pixels_is_attention(attention: Attention) -> None:
    q, keys, values = draw(PROMPTS, TOKENS, DIM), draw(PROMPTS, PIXELS, DIM), draw(1, PIXELS, DIM)
    wanted = attention(q, keys, values.expand(PROMPTS, -1, -1))
    torch.testing.assert_close(attention.read_pixels(q, keys, values), wanted)


@torch.inference_mode()
def test_reading_projected_pixels_is_attention(attention: Attention) -> None:
    q, keys, values = draw(PROMPTS, TOKENS, DIM), draw(1, PIXELS, DIM), draw(1, PIXELS, DIM)
    wanted = attention(q, *(t.expand(PROMPTS, -1, -1) for t in (keys, values)))
    got = attention.read_projected(q, *attention.project_pixels(keys, values))
    torch.testing.assert_close(got, wanted)


@torch.inference_mode()
def test_writing_pixels_is_attention(attention: Attention) -> None:
    q = draw(1, PIXELS, DIM)
    k, v = draw(PROMPTS, TOKENS, DIM), draw(PROMPTS, TOKENS, DIM)
    wanted = attention(q.expand(PROMPTS, -1, -1), k, v)
    torch.testing.assert_close(attention.write_pixels(q, k, v), wanted)


@torch.inference_mode()
def test_expansions_in_block_order_are_transposed_convolutions() -> None:
    torch.manual_seed(0)
    convolutions = nn.ConvTranspose2d(8, 6, 2, 2), nn.ConvTranspose2d(6, 5, 2, 2)
    first, second = Expand(8, 6), Expand(6, 5)
    for ours, wanted in zip((first, second), convolutions, strict=True):
        ours.load_state_dict(wanted.state_dict())
    x = torch.randn(2, 8, 3, 3)
    blocks = second(first(x.flatten(2).transpose(1, 2))).flatten(1, 3)
    got = from_blocks(blocks.transpose(1, 2), grid=3)
    torch.testing.assert_close(got, convolutions[1](convolutions[0](x)))


@settings(max_examples=25, deadline=None)
@given(grid=st.integers(1, 5), factor=st.sampled_from([2, 4, 8]), channels=st.integers(1, 3))
def test_blocks_and_back(grid: int, factor: int, channels: int) -> None:
    side = grid * factor
    maps = torch.arange(2.0 * channels * side * side).view(2, channels, side, side)
    blocks = in_blocks(maps.permute(0, 2, 3, 1), grid)
    assert blocks.shape == (2, grid * grid, factor * factor, channels)
    back = from_blocks(blocks.flatten(1, 2).transpose(1, 2), grid)
    assert torch.equal(back, maps)
    # A cell holds its own pixels.
    cell = F.unfold(maps[:, :1], factor, stride=factor)[0, :, 0]
    assert sorted(blocks[0, 0, :, 0].tolist()) == sorted(cell.tolist())


def test_positions_stay_exact_in_reduced_precision() -> None:
    torch.manual_seed(0)
    encoder = PromptEncoder(32, 1024)
    points, labels = torch.tensor([[[1001.0, 999.0]]]), torch.ones(1, 1, dtype=torch.int32)
    exact = encoder.embed_points(points, labels)
    reduced = encoder.to(torch.bfloat16).embed_points(points, labels)
    assert reduced.dtype == torch.bfloat16
    # Half a unit of bfloat16's last place for the sum, its two terms and their rounding.
    assert (reduced.float() - exact).abs().max() < 3 * exact.abs().max() * 2**-8
