"""Memory attention in plain PyTorch, and the layer that it is part of as upstream writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["attend", "memory_attention_layer"]

# Logits of all objects that are held at once: 64 MB in float32.
PAIRS_AT_ONCE = 2**24
# Queries at once where a graph is traced, which has no number of objects and keys yet.
ROWS_AT_ONCE = 512


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Compute memory_attention with at most PAIRS_AT_ONCE logits, or those of one query, at once.

    Shapes as in vkrt.kernels.memory_attention.
    """
    rows = rows_at_once(query.shape[0], query.shape[1], key.shape[1])
    query = query * query.shape[-1] ** -0.5
    # The bias as one more channel: to add it to the logits would be a pass over all of them.
    query = torch.cat((query, torch.ones_like(query[..., :1])), dim=-1)
    key = torch.cat((key, bias.unsqueeze(-1)), dim=-1).transpose(1, 2)
    parts = [(some @ key).softmax(dim=-1) @ value for some in query.split(rows, dim=1)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def rows_at_once(objects: Any, queries: Any, keys: Any) -> int:
    """Return how many queries attend at once; sizes that are traced are no numbers."""
    if isinstance(objects, int) and isinstance(keys, int):
        return max(1, min(queries, PAIRS_AT_ONCE // max(1, objects * keys)))
    return min(queries, ROWS_AT_ONCE) if isinstance(queries, int) else queries


def memory_attention_layer(
    x: Tensor,
    memory: Tensor,
    places: Tensor,
    weights: Mapping[str, Tensor],
    turns: Tensor,
    unturned: int,
) -> Tensor:
    """Compute a layer of SAM 2's memory attention with nothing shared, split, moved or left out.

    Self-attention, cross-attention to the memory and a feed-forward part, each with a norm before
    and a residual around it (SAM 2 paper, appendix D). The tests hold the layer in use to this.

    Args:
        x: (N, L, C) pixels of the frame.
        memory: (N, K, M) the pixels of whole memories, L each, then `unturned` other tokens.
        places: (N, K, M) their encodings in place and time, which keys have and values do not.
        weights: the parameters of the layer by their names in it.
        turns: (L, C/2) complex of modulus 1: what each channel pair of a pixel is multiplied by.
        unturned: how many tokens at the end of the memory have no pixel.

    Returns:
        (N, L, C)
    """
    y = norm(x, weights, "norm1")
    x = x + rotary_attention(y, y, y, weights, "self_attn", turns, 0)
    y = norm(x, weights, "norm2")
    keys = memory + places
    x = x + rotary_attention(y, keys, memory, weights, "cross_attn_image", turns, unturned)
    y = linear(norm(x, weights, "norm3"), weights, "linear1").relu()
    return x + linear(y, weights, "linear2")


def rotary_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weights: Mapping[str, Tensor],
    name: str,
    turns: Tensor,
    unturned: int,
) -> Tensor:
    """Attend with one head whose queries and keys are turned by their pixel."""
    query = turned(linear(query, weights, f"{name}.q_proj"), turns)
    key = linear(key, weights, f"{name}.k_proj")
    value = linear(value, weights, f"{name}.v_proj")
    with_pixel = key.shape[1] - unturned
    repeated = turns.repeat(with_pixel // len(turns), 1)
    key = torch.cat((turned(key[:, :with_pixel], repeated), key[:, with_pixel:]), dim=1)
    logits = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5
    return linear(logits.softmax(dim=-1) @ value, weights, f"{name}.out_proj")


def turned(x: Tensor, turns: Tensor) -> Tensor:
    """Turn neighbouring channels (N, T, C), as the parts of one complex number, by (T, C/2)."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns).flatten(-2)


def linear(x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    """Apply the linear layer of a name."""
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def norm(x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    """Apply the layer norm of a name."""
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])
