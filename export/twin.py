"""A module computed with more bits, or with weights rounded to fewer, without a copy of it.

A copy in float64 takes twice the memory of the module: for large ones there is none. Here each
function's own inputs are changed just before it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from vkrt.export.half import rounds

__all__ = ["InFloat64", "WithHalfWeights"]

Function = Callable[..., Any]


class InFloat64(TorchFunctionMode):
    """Compute all that is in float32 in float64."""

    def __torch_function__(
        self, func: Function, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch with what is widened, and widen what it makes."""
        return tree_map(widened, call(func, args, kwargs, widened))


class WithHalfWeights(TorchFunctionMode):
    """Compute with what `store_half` would store of a module's weights as fp16.

    Args:
        module: what is going to run.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        tensors = (*module.parameters(), *module.buffers())
        # The module holds them, so that no other tensor gets the same id.
        self._stored = {id(tensor) for tensor in tensors if rounds(tensor)}

    def __torch_function__(
        self, func: Function, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch with weights that are rounded."""
        return call(func, args, kwargs, self._rounded)

    def _rounded(self, value: Any) -> Any:
        return value.half().float() if id(value) in self._stored else value


def widened(value: Any) -> Any:
    """Return a float32 tensor, or that dtype itself, as float64."""
    if isinstance(value, Tensor) and value.dtype == torch.float32:
        return value.double()
    return torch.float64 if value is torch.float32 else value


def call(func: Function, args: Any, kwargs: Any, change: Callable[[Any], Any]) -> Any:
    """Return what a function makes of changed inputs."""
    if getattr(func, "__name__", "") == "__get__":
        # A property such as the shape or the dtype: no reason to copy the tensor.
        found = func(*args)
        if not isinstance(found, Tensor):
            return found
    given, named = tree_map(change, (args, kwargs or {}))
    if func is F.conv2d and change is widened:
        return convolved(*given, **named)
    return func(*given, **named)


def convolved(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Return a convolution; one of each channel by itself as a sum over the weight's places.

    In fp64 torch computes that channel by channel, ten times as slowly.
    """
    plain = all(one in (1, (1, 1), [1, 1]) for one in (stride, dilation))
    if not plain or groups == 1 or groups != len(weight) or isinstance(padding, str):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    down, right = (padding, padding) if isinstance(padding, int) else padding
    padded = F.pad(x, (right, right, down, down))
    rows, columns = (
        size - taps + 1 for size, taps in zip(padded.shape[-2:], weight.shape[-2:], strict=True)
    )
    made = x.new_zeros((*x.shape[:-2], rows, columns))
    for row in range(weight.shape[-2]):
        for column in range(weight.shape[-1]):
            part = padded[..., row : row + rows, column : column + columns]
            made.addcmul_(part, weight[:, 0, row, column, None, None])
    return made if bias is None else made.add_(bias[:, None, None])
