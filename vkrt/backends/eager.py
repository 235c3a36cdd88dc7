"""PyTorch as it is: runs a stage's module under inference mode."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vkrt.errors import BackendError
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


class EagerBackend:
    """Run stages with eager PyTorch on a CPU or a GPU.

    Raises:
        BackendError: the device or the precision of the options is not there.
    """

    name = "eager"

    def __init__(self, options: Options) -> None:
        self._device = pick_device(options.device)
        self._dtype = pick_dtype(options.precision, self._device)
        self.device = str(self._device)
        if options.threads is not None:
            torch.set_num_threads(options.threads)

    def prepare(self, stage: Stage) -> Program:
        """Return a program that runs the stage's module on this device."""
        module = stage.module.eval().to(self._device, self._dtype)

        @torch.inference_mode()
        def program(*arrays: torch.Tensor) -> tuple[torch.Tensor, ...]:
            cast = (
                array if port.exact else self._cast(array)
                for port, array in zip(stage.inputs, arrays, strict=True)
            )
            return tuple(module(*cast))

        return program

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
