"""Attention of tokens whose number is known only when it runs, and may be large."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vkrt.kernels.host_attention.tensors import can_take, take_heads

__all__ = ["attention"]


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(query key' / sqrt(D)) value.

    An export has it as one operator: runtimes may compute it without a table of all logits.

    Args:
        query: (B, heads, Q, D).
        key: (B, heads, K, D).
        value: (B, heads, K, V).

    Returns:
        (B, heads, Q, V), of the dtype of the inputs.
    """
    if torch.compiler.is_exporting():
        return traced(query, key, value)
    if can_take(query, key, value):
        return take_heads(query, key, value)
    return F.scaled_dot_product_attention(query, key, value)


@torch.library.custom_op("vkrt::attention", mutates_args=())
def traced(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute the same as one operator of a graph, for whoever exports it."""
    return F.scaled_dot_product_attention(query, key, value).contiguous()


@traced.register_fake
def _(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return query.new_empty(*query.shape[:-1], value.shape[-1])
