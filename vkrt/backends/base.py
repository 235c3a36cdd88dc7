"""The interface that every backend has; engines know nothing else of one."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from vkrt.stage import Program, Stage

__all__ = ["Backend"]


class Backend(Protocol):
    """Turn stages into programs and move arrays between the host and the device.

    Attributes:
        name: such as "eager".
        device: such as "cpu" or "cuda:0".
    """

    name: str
    device: str

    def prepare(self, stage: Stage) -> Program:
        """Return a program that runs the stage on this device."""
        ...

    def empty(self, shape: tuple[int, ...], dtype: str = "float32") -> Any:
        """Return an uninitialized device array."""
        ...

    def from_host(self, array: np.ndarray) -> Any:
        """Return the device array of a host array; its memory may be shared."""
        ...

    def to_host(self, array: Any) -> np.ndarray:
        """Return the host array of a device array, in its port's dtype."""
        ...

    def close(self) -> None:
        """Release what the programs hold."""
        ...
