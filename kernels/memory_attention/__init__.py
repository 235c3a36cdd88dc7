"""Attention of a frame's pixels to memories: one head, values narrower than keys."""

from __future__ import annotations

import torch
from torch import Tensor

from vkrt.kernels.host_attention.tensors import can_take, take
from vkrt.kernels.memory_attention.reference import attend

__all__ = ["memory_attention"]


def memory_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Return softmax(query key' / sqrt(D) + bias) value.

    Values have a width V of their own: as rows of a softmax sum to 1, a projection of the values
    may as well follow, (A M) W + b = A (M W + b), and then V is the width of the memory alone.

    Args:
        query: (N, Q, D).
        key: (N, K, D).
        value: (N, K, V).
        bias: (N, K), added to the logits of every query; large and negative where a key is not to
            be seen, but finite, so that a row that sees none has no NaN.

    Returns:
        (N, Q, V), of the dtype of the inputs.

    Raises:
        ValueError: the shapes do not fit one another.
    """
    inputs = {"query": query, "key": key, "value": value, "bias": bias}
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in inputs.items())
    if [tensor.ndim for tensor in inputs.values()] != [3, 3, 3, 2]:
        raise ValueError(f"memory_attention takes three of 3 dimensions and a bias of 2: {shapes}")
    if any(tensor.shape[0] != query.shape[0] for tensor in inputs.values()):
        raise ValueError(f"memory_attention needs as many of each as there are queries: {shapes}")
    if query.shape[2] != key.shape[2]:
        raise ValueError(f"queries and keys must have one width: {shapes}")
    if value.shape[1] != key.shape[1] or bias.shape[1] != key.shape[1]:
        raise ValueError(f"every key must have a value and a bias: {shapes}")
    if torch.compiler.is_exporting():
        return traced(query, key, value, bias)
    if can_take(*inputs.values()):
        return take(query, key, value, bias)
    return attend(query, key, value, bias)


@torch.library.custom_op("vkrt::memory_attention", mutates_args=())
def traced(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Compute the same as one operator of a graph, for whoever exports it."""
    return attend(query, key, value, bias)


@traced.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    return query.new_empty(*query.shape[:2], value.shape[2])
