"""Attention as the exported graph has it: two products with a softmax between, nothing more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset20 as op

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
    heads; both are passes over all of them.

    Raises:
        NotImplementedError: for what no model here uses.
    """
    if is_causal or dropout_p or enable_gqa:
        raise NotImplementedError("attention that is causal, drops out or shares keys")
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    if factor != 1.0:
        query = op.Mul(query, op.Constant(value_float=factor))
    logits = op.MatMul(query, op.Transpose(key, perm=[0, 1, 3, 2]))
    if attn_mask is not None:
        logits = op.Add(logits, attn_mask)
    return op.MatMul(op.Softmax(logits, axis=-1), value)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: attention
}
