"""Calls of stages as a plan has them: with arrays of the host or of the device, as they come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vkrt.backends.base import Backend
from vkrt.memory.plan import Plan
from vkrt.memory.residency import Residency

__all__ = ["Calls"]


class Calls:
    """Run the stages of one generation by name, and move arrays there and back.

    Attributes:
        plan: what may be in memory when.

    Args:
        residency: gives their programs.
        backend_of: the backend of a stage, by its name; all are of one device.
        plan: of the generation.
    """

    def __init__(
        self, residency: Residency, backend_of: Callable[[str], Backend], plan: Plan
    ) -> None:
        self.plan = plan
        self._residency = residency
        self._backend_of = backend_of
        residency.stream(plan.streamed)

    def enter(self, phase: str) -> None:
        """Evict what must not be in memory during a phase; behind the last one, enter ""."""
        self._residency.keep_only(self.plan.resident(phase))

    def has(self, stage: str) -> bool:
        """Tell whether there is such a stage."""
        return stage in self._residency

    def __call__(self, stage: str, *arrays: Any) -> tuple[Any, ...]:
        """Return the device arrays that a stage gives, loading it if it is not in memory.

        Raises:
            CheckpointError: there is no such stage, or its weights can't be read.
            BackendError: it can't be prepared, or the model was closed.
        """
        program = self._residency.program(stage)
        return program(*(self.to_device(stage, array) for array in arrays))

    def to_device(self, stage: str, array: Any) -> Any:
        """Return the device array of an array, which may be one already."""
        return self._backend_of(stage).from_host(array) if isinstance(array, np.ndarray) else array

    def to_host(self, stage: str, array: Any) -> np.ndarray:
        """Return the host array of what a stage gave."""
        return self._backend_of(stage).to_host(array)
