"""Attention as the exported graph has it: two products with a softmax between, nothing more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset20 as op

__all__ = ["TRANSLATIONS"]

# Logits of one head and of this many query-key pairs at most are held at once: 16 MB, so that
# those of a few heads stay in the last cache between the three steps.
PAIRS_AT_ONCE = 2**22


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
    # What is computed below has no shape yet.
    parts = parts_of(query.shape[-2], value.shape[-2]) if attn_mask is None else 1
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    if factor != 1.0:
        query = op.Mul(query, op.Constant(value_float=factor))
    key = op.Transpose(key, perm=[0, 1, 3, 2])
    if parts == 1:
        return attend(query, key, value, attn_mask)
    queries = op.Split(query, axis=2, num_outputs=parts)
    return op.Concat(*(attend(some, key, value, None) for some in queries), axis=2)


def parts_of(queries: Any, keys: Any) -> int:
    """Return in how many equal parts the queries attend; 1 where a number is not known."""
    if not isinstance(queries, int) or not isinstance(keys, int):
        return 1
    parts = 1
    while queries * keys > parts * PAIRS_AT_ONCE and queries % (2 * parts) == 0:
        parts *= 2
    return parts


def attend(query: Any, key: Any, value: Any, mask: Any) -> Any:
    """Return softmax(query key + mask) value; the key is (B, H, d, T) already."""
    logits = op.MatMul(query, key)
    if mask is not None:
        logits = op.Add(logits, mask)
    return op.MatMul(op.Softmax(logits, axis=-1), value)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: attention
}
