"""Attention between the pieces of a stage, in bf16 where a CPU multiplies that faster."""

from __future__ import annotations

from dataclasses import replace

from vkrt.stage import Stage
from vkrt.steps import Attention, CutFile

__all__ = ["in_bf16"]


def in_bf16(stage: Stage) -> Stage:
    """Return a stage whose attentions may round to bf16; one that was not cut stays as it is.

    Upstream runs all of both models so. To 8-bit integers attention would lose more than it gains:
    its factors are made anew in every call, and a softmax has no range that fits all rows.
    """
    module = stage.module
    if not isinstance(module, CutFile):
        return stage
    steps = tuple(
        replace(step, precision="bf16") if isinstance(step, Attention) else step
        for step in module.steps
    )
    return replace(stage, module=CutFile(module.path, steps))
