"""A guard against NaN and infinity: a stage that gives any in low precision runs in fp32 instead.

It is a backend around a backend, so that an engine takes it as any other.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import numpy as np

from vkrt.backends.base import Backend
from vkrt.errors import BackendError, GenerationError
from vkrt.stage import Program, Stage

__all__ = ["GuardedBackend", "is_finite"]


def is_finite(array: Any) -> bool:
    """Tell whether a numpy array or torch tensor has neither NaN nor infinity: one reduction."""
    if isinstance(array, np.ndarray):
        if array.dtype.kind != "f":
            return True
        # In float64 no sum of narrower floats overflows; infinities of both signs give NaN.
        with np.errstate(invalid="ignore"):
            return bool(np.isfinite(array.sum(dtype=np.float64)))
    if not array.is_floating_point() or array.numel() == 0:
        return True
    # NaN comes through both, and float64 is not on every device.
    low, high = array.aminmax()
    return bool((low.isfinite() & high.isfinite()).item())


class GuardedBackend:
    """Check what the programs of a backend give, and run a stage in fp32 once it gives NaN.

    Attributes:
        name, device: of the backend inside.
        precision: of its programs, or "" where it does not say.
        inside: that backend.

    Args:
        inside: prepares the stages.
        in_fp32: gives the backend that takes over; None where the one inside has no other.
        reload: gives a stage of a name with its weights in full precision; None takes the stage
            at hand, whose weights were rounded already.
    """

    def __init__(
        self,
        inside: Backend,
        in_fp32: Callable[[], Backend] | None = None,
        reload: Callable[[str], Stage] | None = None,
    ) -> None:
        self.name, self.device = inside.name, inside.device
        self.precision: str = getattr(inside, "precision", "")
        self.inside = inside
        self._in_fp32 = in_fp32
        self._reload = reload
        self._failed: set[str] = set()

    def prepare(self, stage: Stage, budget: int | None = None) -> Program:
        """Return a program that checks its outputs.

        Args:
            stage: as the backend inside takes it.
            budget: bytes that its weights may take on the device; None is any number.

        Raises:
            GenerationError: they do not fit; or, from the program, an output is NaN or infinite
                and fp32 does not help.

        Warns (from the program):
            RuntimeWarning: once a stage, when it goes over to fp32.
        """
        if stage.name in self._failed:
            return self.take_over(stage, budget)
        program = self._prepare_inside(stage, budget)
        # A backend may learn only now that its GPU can't be had.
        self.device = self.inside.device
        return GuardedProgram(self, stage, budget, program)

    def _prepare_inside(self, stage: Stage, budget: int | None) -> Program:
        if budget is None:
            return self.inside.prepare(stage)
        streaming: Any = self.inside
        if not getattr(streaming, "streams", False):
            raise GenerationError(
                f"{stage.name} does not fit the memory limit and the {self.name} backend can't "
                'stream its weights; raise the limit or take backend="eager"'
            )
        return streaming.prepare(stage, budget=budget)

    def take_over(self, stage: Stage, budget: int | None) -> Program:
        """Return a program of the stage in fp32, for now and later.

        Raises:
            GenerationError: there is no fp32 to go to.
        """
        if self._in_fp32 is None:
            raise GenerationError(
                f"{stage.name} gives NaN or infinity, though its inputs have none; its weights "
                "are damaged or the inputs too large for it: check the checkpoint and LoRAs"
            )
        self.release(stage)
        if stage.name not in self._failed:
            self._failed.add(stage.name)
            warnings.warn(
                f"{stage.name} gives NaN or infinity in {self.precision or 'low precision'}; it "
                f'runs in fp32 from here on (precision="{stage.name}=fp32" starts it so)',
                RuntimeWarning,
                stacklevel=2,
            )
        fresh = stage if self._reload is None else self._reload(stage.name)
        return GuardedBackend(self._in_fp32()).prepare(fresh, budget)

    def release(self, stage: Stage) -> None:
        """Move a stage's weights off the device, where the backend inside can."""
        release = getattr(self.inside, "release", None)
        if release is not None:
            release(stage)

    def empty(self, shape: tuple[int, ...], dtype: str = "float32") -> Any:
        """Return an uninitialized device array."""
        return self.inside.empty(shape, dtype)

    def from_host(self, array: np.ndarray) -> Any:
        """Return the device array of a host array."""
        return self.inside.from_host(array)

    def to_host(self, array: Any) -> np.ndarray:
        """Return the host array of a device array."""
        return self.inside.to_host(array)

    def close(self) -> None:
        """Release what the programs hold."""
        self.inside.close()


class GuardedProgram:
    """Run a stage and check what it gives; calls take turns, so that none meets a change."""

    def __init__(
        self, backend: GuardedBackend, stage: Stage, budget: int | None, program: Program
    ) -> None:
        self._backend = backend
        self._stage = stage
        self._budget = budget
        self._program: Program | None = program
        self._guarded = True
        self._lock = Lock()

    def __call__(self, *arrays: Any) -> tuple[Any, ...]:
        """Return the stage's outputs, all finite.

        Raises:
            GenerationError: they are not, in fp32 either, or an input was not.
            BackendError: the program was closed.
        """
        with self._lock:
            if self._program is None:
                raise BackendError("this model was closed; load it again")
            outputs = self._program(*arrays)
            if not self._guarded or all(map(is_finite, outputs)):
                return outputs
            self._blame_inputs(arrays)
            # These outputs and the new program at once may be more than there is memory for.
            del outputs
            self._program = self._backend.take_over(self._stage, self._budget)
            # What takes over has a guard of its own.
            self._guarded = False
            return self._program(*arrays)

    def _blame_inputs(self, arrays: Sequence[Any]) -> None:
        """Say which input has NaN, if one has: no precision helps then."""
        for port, array in zip(self._stage.inputs, arrays, strict=True):
            if not is_finite(array):
                raise GenerationError(
                    f"{self._stage.name} was given NaN or infinity in {port.name}; "
                    "check the pictures, latents or embeddings that were passed in"
                )

    def close(self) -> None:
        """Release the program; it can't be called any more."""
        with self._lock:
            close = getattr(self._program, "close", None)
            self._program = None
        if close is not None:
            close()
