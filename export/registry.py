"""torch's list of translations, made once in a process: it makes it anew for every graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from functools import cache
from typing import Any

from torch.onnx._internal.exporter import _registration

__all__ = ["kept_registry"]

make = getattr(_registration.ONNXRegistry, "from_torchlib", None)


@contextmanager
def kept_registry() -> Iterator[None]:
    """Let torch.onnx.export take a copy of the list that it made first."""
    if make is None:
        # Another version of torch, which makes it elsewhere.
        yield
        return
    cls: Any = _registration.ONNXRegistry
    cls.from_torchlib = staticmethod(copied)
    try:
        yield
    finally:
        cls.from_torchlib = make


@cache
def made(*args: Any, **kwargs: Any) -> Any:
    """Return the list of translations of some version of ONNX."""
    assert make is not None
    return make(*args, **kwargs)


def copied(*args: Any, **kwargs: Any) -> Any:
    """Return a copy of that list, to which others may be added."""
    registry = copy(made(*args, **kwargs))
    registry.functions = {target: list(found) for target, found in registry.functions.items()}
    return registry
