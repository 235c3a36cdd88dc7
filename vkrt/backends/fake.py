"""A backend that computes nothing: its programs give arrays of the stated shapes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from vkrt.stage import Program, Stage, bind, shape_of

__all__ = ["FakeBackend"]


class FakeBackend:
    """Stand in for a real backend in tests of the engines.

    Attributes:
        calls: how often each stage ran.
        received: the arrays that each stage's last call got.
    """

    name = "fake"
    device = "cpu"

    def __init__(self, seed: int = 0) -> None:
        self.calls: Counter[str] = Counter()
        self.received: dict[str, tuple[np.ndarray, ...]] = {}
        self._rng = np.random.default_rng(seed)

    def prepare(self, stage: Stage) -> Program:
        """Return a program that checks its inputs' shapes and gives random outputs.

        Raises (from the program):
            ValueError: an input's rank, size or dtype is not what its port states.
        """

        def program(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
            self.calls[stage.name] += 1
            self.received[stage.name] = arrays
            sizes = bind(stage.inputs, (array.shape for array in arrays))
            for port, array in zip(stage.inputs, arrays, strict=True):
                if str(array.dtype) != port.dtype:
                    raise ValueError(f"{port.name} is {array.dtype}, not {port.dtype}")
            return tuple(
                self._rng.standard_normal(shape_of(port, sizes)).astype(port.dtype)
                for port in stage.outputs
            )

        return program

    def empty(self, shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
        """Return an array of NaN, so that a read before a write shows."""
        return np.full(shape, np.nan if dtype.startswith("float") else -1, dtype)

    def from_host(self, array: np.ndarray) -> np.ndarray:
        """Return the array itself."""
        return array

    def to_host(self, array: Any) -> np.ndarray:
        """Return the array itself."""
        return array

    def close(self) -> None:
        """Do nothing."""
