"""The host's attention for tensors of PyTorch that share its memory."""

from __future__ import annotations

import torch
from torch import Tensor

from vkrt.kernels import host_attention

__all__ = ["can_take", "take", "take_heads"]


def can_take(*tensors: Tensor) -> bool:
    """Tell whether the C++ can take over: float32 on the CPU, neither traced nor learning."""
    if torch.compiler.is_compiling() or not host_attention.IS_NATIVE:
        return False
    return all(
        tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and tensor.numel() > 0
        and not (tensor.requires_grad and torch.is_grad_enabled())
        for tensor in tensors
    )


def take(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return softmax(query key' / sqrt(D) + bias) value.

    Args:
        query: (N, Q, D).
        key: (N, K, D).
        value: (N, K, V).
        bias: (N, K) or None.

    Returns:
        (N, Q, V)
    """
    q, k, v = (part.contiguous().numpy() for part in (query, key, value))
    added = None if bias is None else bias.contiguous().numpy()
    read = host_attention.attend(q, k, v, added, torch.get_num_threads())
    return torch.from_numpy(read)


def take_heads(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return the same of each head: (N, H, Q, D), (N, H, K, D), (N, H, K, V) to (N, H, Q, V).

    Heads that are neighbours in memory, as a projection gives them, are read and written there.
    """
    q, k, v = (dense_rows(part.transpose(1, 2)).numpy() for part in (query, key, value))
    read = host_attention.attend(q, k, v, threads=torch.get_num_threads())
    return torch.from_numpy(read).transpose(1, 2)


def dense_rows(x: Tensor) -> Tensor:
    """Return a tensor whose last axis has no gaps."""
    return x if x.stride(-1) == 1 else x.contiguous()
