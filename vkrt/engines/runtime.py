"""What a model runs on: its stages, their backend and the programs that this made of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol
from weakref import WeakSet

import numpy as np

from vkrt.backends.base import Backend
from vkrt.engines.programs import Programs
from vkrt.forks import HomeLock
from vkrt.stage import Port, Stage

__all__ = ["Background", "DeviceArrays", "Runtime", "Runtimes"]


class Background(Protocol):
    """Do something for a model beside its calls, such as to prepare a faster runtime."""

    def touch(self) -> None:
        """Note that the model is about to be used; this must take no time."""
        ...

    def stop(self) -> None:
        """Give it up: the model was closed."""
        ...


class Runtime:
    """Hold stages and what runs them; one never changes, a model goes over to another.

    Attributes:
        stages: by name.
        backend: runs them.
        programs: by name of the stage.

    Args:
        at_once: names of the stages that are prepared now.
    """

    def __init__(
        self, stages: Mapping[str, Stage], backend: Backend, at_once: Collection[str] = ()
    ) -> None:
        self.stages = stages
        self.backend = backend
        self.programs = Programs(stages, backend, at_once)

    @property
    def feature_ports(self) -> tuple[Port, ...]:
        """Return what the image encoder gives."""
        return self.stages["image_encoder"].outputs

    def encode(self, pixels: np.ndarray) -> tuple[Any, ...]:
        """Return the image encoder's device arrays of (B, 3, side, side) float32."""
        return self.programs["image_encoder"](self.backend.from_host(pixels))

    def copy_row(self, features: tuple[Any, ...], index: int) -> tuple[Any, ...]:
        """Return the features of one photo of a batch."""
        # A view would keep the whole batch alive for as long as one of its photos.
        rows = []
        for feature, port in zip(features, self.feature_ports, strict=True):
            row = self.backend.empty((1, *feature.shape[1:]), port.dtype)
            row[...] = feature[index : index + 1]
            rows.append(row)
        return tuple(rows)

    def close(self) -> None:
        """Release the programs and what the backend holds."""
        self.programs.close()
        self.backend.close()


class Runtimes:
    """Give what runs a model now, and replace it between calls.

    Attributes:
        now: what runs the calls that begin.
        background: what works for the model beside its calls.

    Args:
        first: runs the model until another takes over.
    """

    def __init__(self, first: Runtime) -> None:
        self.now = first
        # What streams and tracks that began before a switch still run.
        self._retired: WeakSet[Programs] = WeakSet()
        self.background: Background | None = None
        self._lock = HomeLock()
        self._closed = False

    def attach(self, background: Background) -> None:
        """Let something know when the model is used, and when it is closed."""
        self.background = background

    def begin(self) -> Runtime:
        """Return what runs the call that begins now, from its first stage to its last.

        Raises:
            BackendError: this is a child of the process that made the model.
        """
        self._lock.home.check()
        if self.background is not None:
            self.background.touch()
        return self.now

    def replace(self, runtime: Runtime) -> None:
        """Run the calls that begin from now on; those that run end where they began."""
        with self._lock:
            if self._closed:
                runtime.close()
                return
            self._retired.add(self.now.programs)
            self.now = runtime

    def close(self) -> None:
        """Release all of them."""
        with self._lock:
            self._closed = True
        if self.background is not None:
            self.background.stop()
        for programs in tuple(self._retired):
            programs.close()
        self.now.close()


class DeviceArrays:
    """Hold arrays of one backend, which any other takes over once it asks for them.

    Args:
        arrays: device arrays of the backend.
        backend: whose they are.
    """

    def __init__(self, arrays: tuple[Any, ...], backend: Backend) -> None:
        # One attribute, so that no thread sees the arrays of one and the name of another.
        self._held = backend, arrays

    def on(self, backend: Backend) -> tuple[Any, ...]:
        """Return the arrays as those of a backend."""
        holder, arrays = self._held
        if holder is backend:
            return arrays
        moved = tuple(backend.from_host(holder.to_host(array)) for array in arrays)
        self._held = backend, moved
        return moved

    @property
    def now(self) -> tuple[Any, ...]:
        """Return the arrays of whichever backend holds them now."""
        return self._held[1]

    @property
    def nbytes(self) -> int:
        """Return the bytes that the arrays take."""
        return sum(int(array.nbytes) for array in self.now)

    def on_host(self) -> tuple[np.ndarray, ...]:
        """Return the arrays on the host."""
        holder, arrays = self._held
        return tuple(map(holder.to_host, arrays))
