"""Ports, stages and programs: what a model offers to run, and what a backend makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Port", "Program", "Stage", "bind", "shape_of"]

# Takes one array per input port, in their order; gives a tuple of one array per output port.
# What it returns stays valid after its next call.
Program = Callable[..., tuple[Any, ...]]


def nothing_to_check() -> None:
    """Pass: the stage has no files that were verified."""


@dataclass(frozen=True)
class Port:
    """Name one input or output of a stage.

    Attributes:
        name: the name it keeps through every backend and export.
        shape: each dimension as a number, or as a symbol where it may vary.
        dtype: a numpy dtype name, as seen by the caller.
        bounds: the smallest and largest value that an input takes, both included; None is any
            float, or 0 and 1 for whole numbers. Random inputs of checks are drawn from there.
        exact: whether a backend must not reduce its precision (coordinates: a point at 1001 would
            be one at 1000 in bfloat16).
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"
    bounds: tuple[float, float] | None = None
    exact: bool = False


@dataclass(frozen=True)
class Stage:
    """Name a unit that runs by itself.

    Equal symbols of its ports mean equal sizes, unequal ones are free of one another; every
    symbol of the outputs is one of the inputs.

    Attributes:
        name: such as "image_encoder".
        module: what computes it: a torch module whose forward takes the inputs in order and
            returns a tuple; the path of an .onnx file where the stage comes from a bundle, whose
            inputs and outputs have the ports' names; None where nothing has to compute it.
        inputs, outputs: its ports, in order.
        check: raises a CheckpointError if its files are no longer those that were verified; to be
            called once a runtime has read them.
    """

    name: str
    module: Any
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    check: Callable[[], None] = field(default=nothing_to_check, compare=False, repr=False)

    @property
    def symbols(self) -> tuple[str, ...]:
        """Return every symbol of the inputs, in order."""
        every = (size for port in self.inputs for size in port.shape)
        return tuple(dict.fromkeys(size for size in every if isinstance(size, str)))


def bind(ports: Iterable[Port], shapes: Iterable[tuple[int, ...]]) -> dict[str, int]:
    """Return the size of each symbol, given one shape per port.

    Raises:
        ValueError: a shape does not fit its port, or two sizes stand for one symbol.
    """
    sizes: dict[str, int] = {}
    for port, shape in zip(ports, shapes, strict=True):
        if len(shape) != len(port.shape):
            raise ValueError(f"{port.name} has shape {shape}, wanted {port.shape}")
        for wanted, size in zip(port.shape, shape, strict=True):
            expected = sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted
            if size != expected:
                raise ValueError(f"{port.name} has shape {shape}, wanted {port.shape} at {sizes}")
    return sizes


def shape_of(port: Port, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Return the shape of a port whose symbols have these sizes."""
    return tuple(sizes[size] if isinstance(size, str) else size for size in port.shape)
