"""A traced program translated as it is, where torch would trace it again to take it apart.

That takes longer than the first trace, and nearly all operators that models call have a
translation of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset20 as op
from torch.export import ExportedProgram

__all__ = ["TRANSLATIONS", "keep_whole", "take_apart"]


def to_dtype(
    tensor: Any,
    dtype: int,
    non_blocking: bool = False,
    copy: bool = False,
    memory_format: str = "",
) -> Any:
    """Translate Tensor.to(dtype)."""
    return op.Cast(tensor, to=dtype)


def to_device(
    tensor: Any,
    device: str,
    dtype: int,
    non_blocking: bool = False,
    copy: bool = False,
    memory_format: str = "",
) -> Any:
    """Translate Tensor.to(device, dtype): a graph has one device."""
    return op.Cast(tensor, to=dtype)


def logical_and(one: Any, other: Any) -> Any:
    """Translate one & other of booleans."""
    return op.And(one, other)


def logical_or(one: Any, other: Any) -> Any:
    """Translate one | other of booleans."""
    return op.Or(one, other)


# What torch itself translates only once it is taken apart.
TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.to.dtype: to_dtype,
    torch.ops.aten.to.device: to_device,
    torch.ops.aten.__and__.Tensor: logical_and,
    torch.ops.aten.__or__.Tensor: logical_or,
}


def keep_whole(program: ExportedProgram) -> bool:
    """Let a program keep its operators, unless one writes into what it is given; tell whether."""
    if any(writes(node.target) for node in program.graph.nodes):
        return False
    # torch.onnx.export takes the program that this returns.
    program.run_decompositions = lambda table=None: program
    return True


def writes(operator: Any) -> bool:
    """Tell whether what a node calls changes an argument."""
    schema = getattr(operator, "_schema", None)
    return schema is not None and schema.is_mutable


def take_apart(program: ExportedProgram) -> None:
    """Undo keep_whole."""
    del program.run_decompositions
