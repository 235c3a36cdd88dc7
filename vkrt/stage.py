"""Ports, stages and programs: what a model offers to run, and what a backend makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Port", "Program", "Stage"]

# Takes one array per input port, in their order; gives a tuple of one array per output port.
# What it returns stays valid after its next call.
Program = Callable[..., tuple[Any, ...]]


@dataclass(frozen=True)
class Port:
    """Name one input or output of a stage.

    Attributes:
        name: the name it keeps through every backend and export.
        shape: each dimension as a number, or as a symbol where it may vary.
        dtype: a numpy dtype name, as seen by the caller.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class Stage:
    """Name a unit that runs by itself.

    Attributes:
        name: such as "image_encoder".
        module: what computes it (a torch module whose forward takes the inputs in order and
            returns a tuple), or None where a bundle holds it.
        inputs, outputs: its ports, in order.
    """

    name: str
    module: Any
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
