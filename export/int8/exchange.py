"""Some stages of an engine exchanged while it lives, and their calls noted."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vkrt.backends.base import Backend
from vkrt.stage import Program, Stage

__all__ = ["Call", "Exchange"]


@dataclass(frozen=True)
class Call:
    """Hold what a stage was given and what it made of it."""

    given: tuple[np.ndarray, ...]
    made: tuple[np.ndarray, ...]


@dataclass
class Exchange:
    """Be the backend of an engine, and run some of its stages from other files than it knows.

    Attributes:
        backend: runs all of them.
        names: of the stages that can be exchanged.
        name, device: of the backend.
        calls, seconds: of each of these since the last `use`.
    """

    backend: Backend
    names: Collection[str]
    name: str = field(init=False)
    device: str = field(init=False)
    calls: dict[str, list[Call]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    _stages: dict[str, Stage] = field(default_factory=dict)
    _programs: dict[str, Program] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name, self.device = self.backend.name, self.backend.device

    def use(self, stages: Mapping[str, Stage]) -> None:
        """Run these stages from now on, and forget the calls of those before."""
        for program in self._programs.values():
            close: Callable[[], None] | None = getattr(program, "close", None)
            if close is not None:
                close()
        self._programs.clear()
        self._stages = dict(stages)
        self.calls, self.seconds = {}, {}

    def run(self, name: str, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return what the stage of a name makes now."""
        if name not in self._programs:
            self._programs[name] = self.backend.prepare(self._stages[name])
        start = time.perf_counter()
        made = self._programs[name](*arrays)
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)
        # What the engine gives may change once the call is over.
        kept = Call(tuple(np.array(array) for array in arrays), made)
        self.calls.setdefault(name, []).append(kept)
        return made

    def prepare(self, stage: Stage) -> Program:
        """Return a program that runs a stage, or what stands in for it at that time."""
        if stage.name not in self.names:
            return self.backend.prepare(stage)

        def program(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
            return self.run(stage.name, *arrays)

        return program

    def empty(self, shape: tuple[int, ...], dtype: str = "float32") -> Any:
        """Return what the backend does."""
        return self.backend.empty(shape, dtype)

    def from_host(self, array: np.ndarray) -> Any:
        """Return what the backend does."""
        return self.backend.from_host(array)

    def to_host(self, array: Any) -> np.ndarray:
        """Return what the backend does."""
        return self.backend.to_host(array)

    def close(self) -> None:
        """Close the programs and the backend."""
        self.use({})
        self.backend.close()
