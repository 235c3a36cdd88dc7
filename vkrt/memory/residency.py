"""Which programs of a model are in memory: each prepared when asked for, and dropped when told."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from vkrt.errors import BackendError, CheckpointError
from vkrt.forks import HomeLock
from vkrt.stage import Program, Stage

__all__ = ["Residency"]


class Runner(Protocol):
    """Turn stages into programs, and release what they hold."""

    def prepare(self, stage: Stage) -> Program:
        """Return a program that runs a stage."""
        ...

    def close(self) -> None:
        """Release what the programs hold."""
        ...


class Residency:
    """Keep the programs of stages that come and go; any number of threads may ask.

    Nothing but this holds a stage or its program, so that what is evicted is freed.

    Args:
        stages: by name; asking for one may read its weights, so that is done once per stay.
        backend_of: the backend of a stage, by its name.
    """

    def __init__(self, stages: Mapping[str, Stage], backend_of: Callable[[str], Runner]) -> None:
        self._stages = stages
        self._backend_of = backend_of
        self._held: dict[str, tuple[Stage, Program]] = {}
        self._budgets: dict[str, int] = {}
        self._used: list[Runner] = []
        self._lock = HomeLock()
        self._closed = False

    @property
    def loaded(self) -> dict[str, Any]:
        """Return the modules of the stages that are in memory, by stage, the oldest first."""
        with self._lock:
            return {name: stage.module for name, (stage, _) in self._held.items()}

    def fixed(self) -> dict[str, Any]:
        """Return `loaded` without stages that are streamed, whose weights come and go: evicted."""
        with self._lock:
            self.evict(*self._budgets)
            return self.loaded

    def __contains__(self, name: object) -> bool:
        return name in self._stages

    def require(self, names: Collection[str]) -> None:
        """Refuse to begin what needs stages that are not there, before anything runs.

        Raises:
            CheckpointError: one is missing.
        """
        for name in names:
            if name not in self._stages:
                try:
                    # Whoever reads the weights can say best how to give these.
                    self._stages[name]
                except KeyError:
                    raise CheckpointError(
                        f"this model was loaded without {name}: give weights that have it"
                    ) from None

    def program(self, name: str) -> Program:
        """Return the program of a stage, loaded first if it is not in memory.

        Raises:
            CheckpointError: there is no such stage, or its weights can't be read.
            BackendError: it can't be prepared, or the model was closed.
        """
        with self._lock:
            if self._closed:
                raise BackendError("this model was closed; load it again")
            if name not in self._held:
                self.require([name])
                backend = self._backend_of(name)
                stage = self._stages[name]
                self._held[name] = (stage, prepare(backend, stage, self._budgets.get(name)))
                if not any(backend is known for known in self._used):
                    self._used.append(backend)
            return self._held[name][1]

    def stream(self, budgets: Mapping[str, int]) -> None:
        """Say which stages may have so many bytes of weights on the device, and no more.

        Those in memory under another budget are evicted.
        """
        with self._lock:
            names = budgets.keys() | self._budgets.keys()
            self.evict(*[n for n in names if budgets.get(n) != self._budgets.get(n)])
            self._budgets = dict(budgets)

    def evict(self, *names: str) -> None:
        """Drop the programs of stages, and so their weights; those not in memory stay so."""
        with self._lock:
            for name in names:
                if name in self._held:
                    _, program = self._held.pop(name)
                    # Backends of host arrays keep their programs too; these release by themselves.
                    close = getattr(program, "close", None)
                    if close is not None:
                        close()

    def keep_only(self, names: Collection[str]) -> None:
        """Evict every stage but these."""
        with self._lock:
            self.evict(*[name for name in self._held if name not in names])

    def close(self) -> None:
        """Drop everything and close the backends; no program can be asked for any more."""
        with self._lock:
            self._closed = True
            self.keep_only(())
            for backend in self._used:
                backend.close()
            self._used.clear()


def prepare(backend: Any, stage: Stage, budget: int | None) -> Program:
    """Return the program of a stage; only backends that stream are told of a budget."""
    return backend.prepare(stage) if budget is None else backend.prepare(stage, budget=budget)
