"""Attention as the exported graph has it: two products with a softmax between, or one mark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset20 as op

# These define torch.ops.vkrt.
import vkrt.kernels.attention
import vkrt.kernels.memory_attention  # noqa: F401
from vkrt.export.marks import MARK, parts_of

__all__ = ["TRANSLATIONS"]


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Translate torch's scaled_dot_product_attention of (B, H, T, d).

    torch's own translation multiplies queries and keys by a root of the scale each and turns the
    keys over in three dimensions, which no runtime merges with the transposition that split the
    heads; both are passes over all of them. And it holds the logits of all queries at once.

    Raises:
        NotImplementedError: for what no model here uses.
    """
    if is_causal or dropout_p or enable_gqa:
        raise NotImplementedError("attention that is causal, drops out or shares keys")
    own_scale = query.shape[-1] ** -0.5
    factor = own_scale if scale is None else scale
    if attn_mask is None and parts_of(query.shape[-2], value.shape[-2]) > 1:
        if factor != own_scale:
            query = op.Mul(query, op.Constant(value_float=factor / own_scale))
        return MARK(query, key, value)
    if factor != 1.0:
        query = op.Mul(query, op.Constant(value_float=factor))
    return attend(query, op.Transpose(key, perm=[0, 1, 3, 2]), value, attn_mask)


def memory_attention(query: Any, key: Any, value: Any, bias: Any) -> Any:
    """Translate vkrt.kernels.memory_attention."""
    return MARK(query, key, value, bias)


def large_attention(query: Any, key: Any, value: Any) -> Any:
    """Translate vkrt.kernels.attention."""
    return MARK(query, key, value)


def attend(query: Any, key: Any, value: Any, mask: Any) -> Any:
    """Return softmax(query key + mask) value; the key is (B, H, d, T) already."""
    logits = op.MatMul(query, key)
    if mask is not None:
        logits = op.Add(logits, mask)
    return op.MatMul(op.Softmax(logits, axis=-1), value)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: attention,
    torch.ops.vkrt.attention.default: large_attention,
    torch.ops.vkrt.memory_attention.default: memory_attention,
}
