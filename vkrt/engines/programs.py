"""The programs of a model's stages, each prepared once: some at the start, the others when used."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from vkrt.backends.base import Backend
from vkrt.errors import BackendError
from vkrt.forks import HomeLock
from vkrt.stage import Program, Stage

__all__ = ["Programs"]


class Programs:
    """Give the program of a stage by name; any number of threads may ask.

    Args:
        stages: by name.
        backend: prepares them.
        at_once: names of those that are prepared now.
    """

    def __init__(
        self, stages: Mapping[str, Stage], backend: Backend, at_once: Collection[str] = ()
    ) -> None:
        self._stages = stages
        self._backend = backend
        self._ready: dict[str, Program] = {}
        self._lock = HomeLock()
        self._closed = False
        for name in at_once:
            self[name]

    def __getitem__(self, name: str) -> Program:
        """Return the program of a stage, prepared first if nobody asked for it before.

        Raises:
            BackendError: it can't be prepared, the model was closed, or this is a child of the
                process that made it.
        """
        self._lock.home.check()
        ready = self._ready.get(name)
        return self._prepare(name) if ready is None else ready

    def _prepare(self, name: str) -> Program:
        with self._lock:
            if self._closed:
                raise BackendError("this model was closed; load it again")
            # Another thread may have been here while this one waited.
            if name not in self._ready:
                self._ready[name] = self._backend.prepare(self._stages[name])
            return self._ready[name]

    def close(self) -> None:
        """Forget every program; none can be asked for any more."""
        with self._lock:
            self._closed = True
            self._ready.clear()
