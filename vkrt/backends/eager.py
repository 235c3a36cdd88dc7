"""PyTorch as it is: runs a stage's module under inference mode."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from vkrt.backends.streaming import Streamer, find_blocks, stream
from vkrt.errors import BackendError
from vkrt.forks import Home
from vkrt.options import Options
from vkrt.stage import Program, Stage

__all__ = ["EagerBackend"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(wanted: str) -> torch.device:
    """Return the device of a name; "auto" is the first GPU, else the CPU.

    Raises:
        BackendError: torch does not know the name or does not see the device.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise BackendError(
            f"device {wanted!r} is not usable by this torch {torch.__version__}; "
            'use device="cpu", or see `vkrt doctor`'
        ) from None
    return device


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a precision; "auto" is bf16 on a GPU that has it, else fp32.

    Raises:
        BackendError: eager PyTorch does not have it.
    """
    if wanted != "auto" and wanted not in DTYPES:
        raise BackendError(
            f'eager PyTorch has no {wanted}; take {", ".join(DTYPES)}, or backend="onnx"'
        )
    if wanted != "auto":
        return DTYPES[wanted]
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return torch.float32


_first: Home | None = None


def set_threads(threads: int | None) -> None:
    """Set how many threads torch takes, for good; None leaves the machine's default.

    In a child of a process that ran torch it is one: those of its OpenMP are not there.

    Warns:
        RuntimeWarning: in such a child.
    """
    global _first
    _first = _first or Home()
    if not _first.is_here:
        warnings.warn(
            "this process was forked from one that ran PyTorch, whose threads it lacks: PyTorch "
            'runs on one; multiprocessing.get_context("spawn") starts processes that have all',
            RuntimeWarning,
            stacklevel=2,
        )
        threads = 1
    if threads is not None:
        torch.set_num_threads(threads)


class EagerBackend:
    """Run stages with eager PyTorch on a CPU or a GPU.

    Attributes:
        precision: "fp32", "bf16" or "fp16".
        streams: whether it prepares stages within a budget.

    Raises:
        BackendError: the device or the precision of the options is not there.
    """

    name = "eager"
    streams = True

    def __init__(self, options: Options) -> None:
        self._device = pick_device(options.device)
        self._dtype = pick_dtype(options.precision, self._device)
        self.device = str(self._device)
        self.precision = next(name for name, dtype in DTYPES.items() if dtype == self._dtype)
        self._streamers: WeakKeyDictionary[nn.Module, Streamer] = WeakKeyDictionary()
        set_threads(options.threads)

    def prepare(self, stage: Stage, budget: int | None = None) -> Program:
        """Return a program that runs the stage's module on this device.

        Args:
            stage: its module moves to the device, in this backend's precision.
            budget: bytes that its weights may take on the device; what is beyond them stays on
                the host and is copied in block by block. None is any number.

        Raises:
            GenerationError: they can't run in so few.
        """
        module = stage.module.eval()
        streamer = self._place(module, budget)
        alone: AbstractContextManager[Any] = streamer.lock if streamer else nullcontext()

        @torch.inference_mode()
        def program(*arrays: torch.Tensor) -> tuple[torch.Tensor, ...]:
            cast = (
                array if port.exact else self._cast(array)
                for port, array in zip(stage.inputs, arrays, strict=True)
            )
            with alone:
                return tuple(module(*cast))

        return program

    def _place(self, module: nn.Module, budget: int | None) -> Streamer | None:
        """Move a module to the device, and return what streams it, if it is streamed."""
        self._gather(module)
        if budget is None:
            module.to(self._device, self._dtype)
            return None
        streamer = stream(module.to(self._dtype), self._device, budget)
        if streamer is not None:
            # Stages may share the blocks; whoever prepares or releases one finds them by these.
            self._streamers[find_blocks(module)] = streamer
        return streamer

    def _gather(self, module: nn.Module) -> None:
        """Bring a module together on the host, if it is streamed."""
        for each in module.modules():
            streamer = self._streamers.pop(each, None)
            if streamer is not None:
                streamer.release()

    def release(self, stage: Stage) -> None:
        """Move a stage's weights back to the host; its programs can't be called any more.

        Only then may they be changed, if they were streamed.
        """
        self._gather(stage.module)
        stage.module.to("cpu")
        self.close()

    def _cast(self, array: torch.Tensor) -> torch.Tensor:
        return array.to(self._dtype) if array.is_floating_point() else array

    def empty(self, shape: tuple[int, ...], dtype: str = "float32") -> torch.Tensor:
        """Return an uninitialized tensor on this device."""
        return torch.empty(shape, dtype=getattr(torch, dtype), device=self._device)

    def from_host(self, array: np.ndarray) -> torch.Tensor:
        """Return a tensor on this device; on the CPU it shares the array's memory."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def to_host(self, array: Any) -> np.ndarray:
        """Return a host array; reduced-precision floats become float32."""
        if array.is_floating_point():
            array = array.float()
        return array.cpu().numpy()

    def close(self) -> None:
        """Release the device memory that torch caches."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
