"""A module computed with more bits, or with weights rounded to fewer, without a copy of it.

A copy in float64 takes twice the memory of the module: for large ones there is none. Here each
operator's own inputs are changed just before it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from vkrt.export.half import rounds

__all__ = ["InFloat64", "WithHalfWeights"]


class InFloat64(TorchDispatchMode):
    """Compute all that is in float32 in float64."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operator on what is widened."""
        wide, named = tree_map(widened, (args, kwargs or {}))
        return func(*wide, **named)


def widened(value: Any) -> Any:
    """Return a float32 tensor, or the dtype itself, as float64."""
    if isinstance(value, Tensor) and value.dtype == torch.float32:
        return value.double()
    return torch.float64 if value is torch.float32 else value


class WithHalfWeights(TorchDispatchMode):
    """Compute with what `store_half` would store of a module's weights as fp16.

    Args:
        module: what is going to run.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        tensors = (*module.parameters(), *module.buffers())
        # The module holds them, so that no other tensor gets the same id.
        self.rounded = {id(tensor) for tensor in tensors if rounds(tensor)}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operator on weights that are rounded."""
        given, named = tree_map(self.round, (args, kwargs or {}))
        return func(*given, **named)

    def round(self, value: Any) -> Any:
        """Return a weight rounded to fp16, and anything else as it is."""
        return value.half().float() if id(value) in self.rounded else value
