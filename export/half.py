"""Weights stored as fp16 in half the bytes; what runs still computes in fp32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

__all__ = ["round_half", "rounds", "store_half"]

# Below it a file gains nothing, and position matrices and norms keep their precision.
LEAST_VALUES = 1024
LARGEST = float(np.finfo(np.float16).max)


def fits(size: int, extreme: float) -> bool:
    """Tell whether a tensor of this many values, none beyond `extreme`, is stored as fp16."""
    return size >= LEAST_VALUES and extreme <= LARGEST


def store_half(model: ir.Model) -> None:
    """Store every large float32 weight as fp16 with a cast to float32 behind it.

    ONNX Runtime folds the casts when it loads the model.
    """
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT:
            continue
        weights = tensor.numpy()
        if not fits(weights.size, float(np.abs(weights).max(initial=0.0))):
            continue
        del graph.initializers[name]
        stored = ir.Value(name=name, const_value=halved(tensor))
        cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT})
        value.name = f"{name}_unused"
        cast.outputs[0].name = f"{name}_fp32"
        graph.register_initializer(stored)
        graph.insert_before(graph[0], cast)
        ir.convenience.replace_all_uses_with(value, cast.outputs[0])


def halved(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    """Return a tensor as fp16, made when it is written: all at once may be more than fits."""

    def make() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype(np.float16), name=tensor.name)

    shape = ir.Shape(tensor.numpy().shape)
    return ir.LazyTensor(make, ir.DataType.FLOAT16, shape, name=tensor.name)


def rounds(tensor: torch.Tensor) -> bool:
    """Tell whether `store_half` would store a weight as fp16."""
    if tensor.dtype != torch.float32 or not tensor.numel():
        return False
    # Not abs().max(), which is a second copy.
    low, high = (float(end) for end in tensor.detach().aminmax())
    return fits(tensor.numel(), max(-low, high))


def round_half(module: nn.Module) -> nn.Module:
    """Round in place what `store_half` would store as fp16, and return the module."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if rounds(tensor):
            tensor.data.copy_(tensor.data.half().float())
    return module
