"""Joint attention is one softmax over context and image, with norms of its own for each."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vkrt.kernels.qk_norm_attention import EPS, Norms, qk_norm_attention

HEADS, HEAD_DIM = 3, 8


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def packed(batch: int, tokens: int) -> Tensor:
    return draw(batch, tokens, 3, HEADS, HEAD_DIM)


def weights() -> tuple[Tensor, Tensor]:
    return 1 + draw(HEAD_DIM) / 3, 1 + draw(HEAD_DIM) / 3


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


def plain(*streams: tuple[Tensor, Norms]) -> Tensor:
    """Return what all tokens of streams read of one another, head by head and without torch's."""
    query, key, value = [], [], []
    for tokens, norms in streams:
        q, k, v = tokens.unbind(2)
        query.append(q if norms is None else rms(q, norms[0]))
        key.append(k if norms is None else rms(k, norms[1]))
        value.append(v)
    q, k, v = (torch.cat(parts, dim=1) for parts in (query, key, value))
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) / HEAD_DIM**0.5
    return torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), v).flatten(2)


@pytest.mark.parametrize("with_norms", [True, False])
@pytest.mark.parametrize(("batch", "pixels", "words"), [(1, 1, 1), (2, 63, 17), (3, 20, 123)])
def test_it_is_joint_attention(batch: int, pixels: int, words: int, with_norms: bool) -> None:
    torch.manual_seed(pixels)
    image, context = packed(batch, pixels), packed(batch, words)
    norms = (weights(), weights()) if with_norms else (None, None)
    wanted = plain((context, norms[1]), (image, norms[0]))
    read, told = qk_norm_attention(image, context, *norms)
    torch.testing.assert_close(told, wanted[:, :words])
    torch.testing.assert_close(read, wanted[:, words:])
    again, nothing = qk_norm_attention(image, context, *norms, context_out=False)
    assert nothing is None
    torch.testing.assert_close(again, read)


@pytest.mark.parametrize("with_norms", [True, False])
def test_an_image_alone(with_norms: bool) -> None:
    torch.manual_seed(0)
    image, norms = packed(2, 21), weights() if with_norms else None
    read, nothing = qk_norm_attention(image, None, norms, None)
    assert nothing is None
    torch.testing.assert_close(read, plain((image, norms)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_values_in_low_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    # Their squares are beyond float16.
    image, context = packed(1, 30) * 600, packed(1, 10) * 600
    norms = weights(), weights()
    exact, _ = qk_norm_attention(image, context, *norms)
    low = [tuple(weight.to(dtype) for weight in pair) for pair in norms]
    read, told = qk_norm_attention(image.to(dtype), context.to(dtype), *low)
    assert read.dtype == told.dtype == dtype and told.isfinite().all()
    assert (read.double() - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize(
    ("image", "context", "norm", "message"),
    [
        ((2, 5, 2, 3, 8), None, 8, "image must have shape"),
        ((2, 5, 24), None, 8, "image must have shape"),
        ((2, 5, 3, 3, 8), (2, 5, 3, 24), 8, "context must have shape"),
        ((2, 5, 3, 3, 8), (1, 5, 3, 3, 8), 8, "agree in batch"),
        ((2, 5, 3, 3, 8), (2, 5, 3, 4, 8), 8, "agree in batch"),
        ((2, 5, 3, 3, 8), (2, 5, 3, 3, 8), 24, "image_norms must have a weight"),
    ],
)
def test_shapes_that_do_not_fit(
    image: tuple[int, ...], context: tuple[int, ...] | None, norm: int, message: str
) -> None:
    norms = torch.ones(norm), torch.ones(norm)
    told = None if context is None else torch.zeros(context)
    with pytest.raises(ValueError, match=message):
        qk_norm_attention(torch.zeros(image), told, norms, norms)
