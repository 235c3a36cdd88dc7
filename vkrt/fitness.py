"""Whether a bundle fits what is asked of it and the machine that is to run it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from vkrt import backends
from vkrt.bundle import Bundle
from vkrt.errors import BackendError
from vkrt.export.int8.cpu import needs_reduced_range

__all__ = ["check_runs", "warn_of_overflow"]


def check_runs(bundle: Bundle, backend: str, precision: str | Mapping[str, str]) -> None:
    """Refuse a bundle on a backend or at a precision that is not its own.

    Raises:
        BackendError: says what to take.
    """
    held, folder = bundle.header, bundle.folder
    if backend != "auto" and not backends.runs_bundles(backend):
        raise BackendError(
            f"{folder} is a bundle, which {backend} can't run; "
            'give its checkpoint, or backend="onnx"'
        )
    runner = backends.bundle_runner(backend)
    if not backends.runs_precision(runner, held.precision):
        raise BackendError(
            f"{folder} holds {held.precision} weights, which the {runner} backend can't run; "
            "take backend=\"onnx\" (pip install 'vkrt[cpu]') or export it again in fp32"
        )
    if precision not in ("auto", held.precision):
        raise BackendError(
            f"{folder} holds {held.precision} weights, not {precision}; "
            'take precision="auto" or export it again'
        )


def warn_of_overflow(bundle: Bundle) -> None:
    """Say that an int8 bundle is from a machine whose CPU could do more than this one.

    Warns:
        RuntimeWarning: it is so.
    """
    if bundle.header.quantization.get("weight_bits") == 8 and needs_reduced_range():
        warnings.warn(
            f"{bundle.folder} has weights of 8 bits, with which products overflow on this CPU and "
            "results suffer: export it again here",
            RuntimeWarning,
            stacklevel=5,
        )
