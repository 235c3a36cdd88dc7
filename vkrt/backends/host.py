"""What backends share whose arrays are numpy's own, in the memory of the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakSet

import numpy as np

from vkrt.stage import Stage, bind, shape_of

__all__ = ["Closable", "HostBackend", "as_ports", "lay_out"]


class Closable(Protocol):
    """Hold something that can be released."""

    def close(self) -> None:
        """Release it."""
        ...


P = TypeVar("P", bound=Closable)


class HostBackend(Generic[P]):
    """Keep the programs of a backend and hand arrays over as they are."""

    def __init__(self) -> None:
        # Not held here: what was closed and let go takes its memory with it.
        self._programs: WeakSet[P] = WeakSet()

    def _keep(self, program: P) -> P:
        """Return a program that closing the backend closes too."""
        self._programs.add(program)
        return program

    def empty(self, shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
        """Return an uninitialized array."""
        return np.empty(shape, dtype)

    def from_host(self, array: np.ndarray) -> np.ndarray:
        """Return the array itself."""
        return array

    def to_host(self, array: Any) -> np.ndarray:
        """Return the array itself."""
        return array

    def close(self) -> None:
        """Release what the programs hold; they can't be called any more."""
        for program in tuple(self._programs):
            program.close()
        self._programs.clear()


def lay_out(
    stage: Stage, arrays: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], tuple[np.ndarray, ...], dict[str, int]]:
    """Return a call's inputs as the ports want them, new arrays for its outputs, and the sizes.

    Args:
        stage: what is called.
        arrays: one per input port, of any layout and dtype.

    Raises:
        ValueError: an array does not fit its port.
    """
    given, sizes = as_ports(stage, arrays)
    made = tuple(np.empty(shape_of(port, sizes), port.dtype) for port in stage.outputs)
    return given, made, sizes


def as_ports(stage: Stage, arrays: Sequence[np.ndarray]) -> tuple[list[np.ndarray], dict[str, int]]:
    """Return a call's inputs as the ports want them, and the sizes.

    Raises:
        ValueError: an array does not fit its port.
    """
    given = [
        np.ascontiguousarray(array, port.dtype)
        for port, array in zip(stage.inputs, arrays, strict=True)
    ]
    return given, bind(stage.inputs, (array.shape for array in given))
