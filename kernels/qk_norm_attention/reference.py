"""Joint attention with normalized queries and keys in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vkrt.kernels.attention import attention

__all__ = ["attend"]

Weights = tuple[Tensor, Tensor]


def attend(
    image: Tensor,
    context: Tensor | None,
    image_norms: Weights | None,
    context_norms: Weights | None,
    eps: float,
    context_out: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Compute qk_norm_attention; shapes as in vkrt.kernels.qk_norm_attention."""
    query, key, value = image.unbind(2)
    query, key = normed(query, image_norms, 0, eps), normed(key, image_norms, 1, eps)
    if context is None:
        return read(query, key, value), None
    asked, told, shown = context.unbind(2)
    # Queries attend apart: joined, they were copied once more, and their results cut in two.
    key = torch.cat((normed(told, context_norms, 1, eps), key), dim=1)
    value = torch.cat((shown, value), dim=1)
    image_read = read(query, key, value)
    if not context_out:
        return image_read, None
    return image_read, read(normed(asked, context_norms, 0, eps), key, value)


def normed(x: Tensor, norms: Weights | None, which: int, eps: float) -> Tensor:
    """Normalize (B, T, heads, head_dim) by root mean square, if there are norms."""
    return x if norms is None else F.rms_norm(x, x.shape[-1:], norms[which], eps)


def read(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend with (B, T, heads, head_dim) and return (B, T, heads * head_dim)."""
    heads = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return attention(*heads).transpose(1, 2).flatten(2)
