"""Backends by name: which ones this machine can run, and making the one that is wanted."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from vkrt.backends.base import Backend
from vkrt.errors import BackendError
from vkrt.options import Options

__all__ = [
    "Candidate",
    "bundle_runner",
    "can_export",
    "candidates",
    "choose",
    "create",
    "may_use_bundle",
    "needed_to_export",
    "runs_bundles",
    "runs_precision",
]


@dataclass(frozen=True)
class Candidate:
    """Say whether a backend can run here.

    Attributes:
        name: the backend.
        usable: whether it can run.
        reason: why, or why not.
        install: the command that would make it usable, "" if it is.
    """

    name: str
    usable: bool
    reason: str
    install: str = ""


@dataclass(frozen=True)
class _Kind:
    name: str
    needs: str
    extra: str
    target: str
    # What it has of a bundle; nothing where it runs checkpoints.
    precisions: tuple[str, ...] = ()


_EAGER = _Kind("eager", "torch", "torch", "vkrt.backends.eager:EagerBackend")
_ONNX = _Kind(
    "onnx", "onnxruntime", "cpu", "vkrt.backends.onnx:OnnxBackend", ("fp32", "fp16", "int8")
)
_OPENVINO = _Kind(
    "openvino",
    "openvino",
    "openvino",
    "vkrt.backends.openvino:OpenVinoBackend",
    ("fp32", "fp16"),
)
_KINDS = {kind.name: kind for kind in (_EAGER, _ONNX, _OPENVINO)}
# What turns a checkpoint into a bundle and checks that.
_EXPORTERS = ("torch", "onnx", "onnxscript", "onnxruntime")
# One of these files is there where Linux, or Windows' own Linux, has a GPU that torch could use.
_GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


def installed(package: str) -> bool:
    """Tell whether a package can be imported, without doing so."""
    try:
        return find_spec(package) is not None
    except ImportError:
        # Something on the import path forbids it.
        return False


def candidates(device: str = "auto") -> list[Candidate]:
    """Return every backend, in the order in which "auto" tries them; imports none of them."""
    onnx_first = can_export() and not on_gpu(device)
    found = []
    # OpenVINO comes last: it is a choice, not what an install for something else brings along.
    for kind in (*((_ONNX, _EAGER) if onnx_first else (_EAGER, _ONNX)), _OPENVINO):
        if installed(kind.needs):
            found.append(Candidate(kind.name, True, why_usable(kind)))
        else:
            install = f"pip install 'vkrt[{kind.extra}]'"
            found.append(Candidate(kind.name, False, f"{kind.needs} is not installed", install))
    return found


def why_usable(kind: _Kind) -> str:
    """Return why a backend can run, and how far."""
    if kind.precisions and not can_export():
        return f"{kind.needs} is installed (for bundles; exporting one needs {needed_to_export()})"
    return f"{kind.needs} is installed"


def needed_to_export() -> str:
    """Return the packages that an export lacks here."""
    return ", ".join(package for package in _EXPORTERS if not installed(package))


def can_export() -> bool:
    """Tell whether a checkpoint can be made a bundle here; imports nothing."""
    return not needed_to_export()


def on_gpu(device: str) -> bool:
    """Tell whether torch would run on a GPU; it is imported only where there may be one."""
    if device != "auto":
        return device != "cpu"
    if sys.platform == "linux" and not any(map(os.path.exists, _GPU_FILES)):
        return False
    if sys.platform == "darwin" or not installed("torch"):
        return False
    import torch

    return torch.cuda.is_available()


def runs_bundles(backend: str) -> bool:
    """Tell whether this is the name of a backend that runs bundles."""
    return backend in _KINDS and bool(_KINDS[backend].precisions)


def runs_precision(backend: str, precision: str) -> bool:
    """Tell whether this is the name of a backend that runs bundles in a precision."""
    return backend in _KINDS and precision in _KINDS[backend].precisions


def bundle_runner(backend: str) -> str:
    """Return the backend that runs a bundle: the one named, or for "auto" the first installed."""
    if backend != "auto":
        return backend
    able = (kind.name for kind in (_ONNX, _OPENVINO) if installed(kind.needs))
    return next(able, _ONNX.name)


def may_use_bundle(options: Options) -> bool:
    """Tell whether the options let a checkpoint run as a bundle, given that there is one.

    Raises:
        BackendError: a backend of bundles is asked for, by its name or by int8, and can't run,
            or not at that precision.
    """
    kind = _KINDS[bundle_runner(options.backend)]
    int8 = options.backend == "auto" and options.precision == "int8"
    if runs_bundles(options.backend) or int8:
        choose(kind.name)
        if options.precision not in ("auto", *kind.precisions):
            raise BackendError(
                f"the {kind.name} backend has no {options.precision}; take one of "
                f"{', '.join(kind.precisions)} (fp16 is of the weights alone), or another backend"
            )
        return True
    wanted = options.backend == "auto" and options.precision in ("auto", "fp32")
    return wanted and installed(kind.needs) and not on_gpu(options.device)


def choose(wanted: str, device: str = "auto") -> Candidate:
    """Return the backend of a name, or the first usable one for "auto".

    Raises:
        BackendError: it is not usable here; the message names the command that installs it.
    """
    known = [c for c in candidates(device) if wanted in ("auto", c.name)]
    for candidate in known:
        if candidate.usable:
            return candidate
    reasons = "; ".join(f"{c.name}: {c.reason}, run {c.install}" for c in known)
    raise BackendError(f"no backend can run here: {reasons or f'{wanted!r} is unknown'}")


def create(options: Options) -> Backend:
    """Return the backend that the options ask for.

    Raises:
        BackendError: neither it nor, for "auto", any other can run here.
    """
    chosen = choose(options.backend, options.device)
    module, _, attribute = _KINDS[chosen.name].target.partition(":")
    backend: Backend = getattr(import_module(module), attribute)(options)
    return backend
