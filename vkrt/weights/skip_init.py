"""Build modules without their random initial values, and where wanted without their memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

__all__ = ["SkipInit"]

# Everything through which torch's layers draw their initial values.
DRAWS = (
    init.kaiming_uniform_,
    init.uniform_,
    init.normal_,
    Tensor.uniform_,
    Tensor.normal_,
)
# What else they set them with: without memory there is nothing to set.
FILLS = (Tensor.fill_, Tensor.zero_)
# What they make parameters and stored tables with.
MAKERS = (torch.empty, torch.zeros)


class SkipInit(TorchFunctionMode):
    """Leave the random initial values out: the memory of what is replaced is never touched.

    The meta device would do the same, but its first use imports for more than a second, and it
    would take the tables that a module computes for itself as well.

    Args:
        allocate: False takes no memory for the parameters either; they are on the meta device
            until weights are assigned.
    """

    def __init__(self, allocate: bool = True) -> None:
        super().__init__()
        self.allocate = allocate

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in DRAWS or (func in FILLS and args[0].is_meta):
            return args[0] if args else kwargs["tensor"]
        if func in MAKERS and not self.allocate:
            return func(*args, **{**kwargs, "device": "meta"})
        return func(*args, **kwargs)
