"""How much arithmetic a stage is: its matrix products, convolutions and attention."""

from __future__ import annotations

import copy

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vkrt.stage import Port, Stage

__all__ = ["stage_flops"]


def placeholder(port: Port, dimensions: dict[str, int]) -> torch.Tensor:
    """Return a tensor without memory for a port, with its symbolic dimensions set."""
    shape = [dimensions[d] if isinstance(d, str) else d for d in port.shape]
    return torch.zeros(shape, dtype=getattr(torch, port.dtype), device="meta")


@torch.no_grad()
def stage_flops(stage: Stage, **dimensions: int) -> int:
    """Return the floating point operations of one call, a multiply-add being two."""
    inputs = [placeholder(port, dimensions) for port in stage.inputs]
    module = copy.deepcopy(stage.module).to("meta")  # shapes only: nothing is computed
    # The counter knows plain products; the CPU's fused attention would count as nothing.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        module(*inputs)
    return int(counter.get_total_flops())
