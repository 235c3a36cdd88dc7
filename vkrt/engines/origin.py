"""Where a model came from, so that another process gets it by loading it too: pickling by reload.

A process that has the model takes that one. Otherwise the last one that was loaded so is kept, for
whoever hands pictures to workers hands the model along with each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from vkrt.errors import BackendError, CheckpointError

__all__ = ["Origin", "forget", "remember", "unload"]

# By process and origin: a forked child can't use what its parent loaded.
_loaded: WeakValueDictionary[tuple[int, str], Any] = WeakValueDictionary()
_last: list[Any] = []


@dataclass(frozen=True)
class Origin:
    """Hold the call that loaded a model.

    Attributes:
        load: the function.
        arguments: its arguments by name; paths are absolute.
        stamps: size and time of change of the files among them, by name of the argument.
    """

    load: Callable[..., Any]
    arguments: Mapping[str, Any]
    stamps: Mapping[str, tuple[int, int]]

    @property
    def key(self) -> tuple[int, str]:
        """Return what equal calls of this process have in common."""
        return os.getpid(), repr((self.load, sorted(self.arguments.items(), key=lambda a: a[0])))


def remember(model: Any, load: Callable[..., Any], /, **arguments: Any) -> None:
    """Note on a model how it was loaded.

    Args:
        model: a Segmenter or a Generator.
        load: the function that loaded it, of a module.
        arguments: as it was called.
    """
    absolute = {name: as_absolute(value) for name, value in arguments.items()}
    stamps = {name: stamp(value) for name, value in absolute.items()}
    model.origin = Origin(load, absolute, {n: s for n, s in stamps.items() if s is not None})
    _loaded[model.origin.key] = model


def forget(model: Any) -> None:
    """Note that a model was closed."""
    origin = model.origin
    if origin is not None and _loaded.get(origin.key) is model:
        del _loaded[origin.key]
    _last[:] = [kept for kept in _last if kept is not model]


def unload(model: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return what pickle keeps of a model: how to get it again.

    Raises:
        BackendError: it was not loaded by vkrt.load.
    """
    if model.origin is None:
        raise BackendError(
            "this model was not made by vkrt.load, so that pickle can't tell another process how "
            "to get it: load it there, and hand over embeddings (embedding.save, load_embedding)"
        )
    return reload, (model.origin,)


def reload(origin: Origin) -> Any:
    """Return the model of an origin: the one that this process has, or it is loaded.

    Raises:
        CheckpointError: a file is not what it was.
        VkrtError: as vkrt.load.
    """
    known = _loaded.get(origin.key)
    if known is not None:
        return known
    for name, before in origin.stamps.items():
        if stamp(origin.arguments[name]) != before:
            raise CheckpointError(
                f"{origin.arguments[name]} was changed or removed since the model was pickled: "
                "load the model anew and pickle it again"
            )
    _last[:] = [origin.load(**origin.arguments)]
    return _last[0]


def as_absolute(value: Any) -> Any:
    """Return a path that exists as an absolute one, also within a mapping, else the value."""
    if isinstance(value, Mapping):
        return {name: as_absolute(each) for name, each in value.items()}
    if not isinstance(value, str | os.PathLike):
        return value
    try:
        there = os.path.exists(value)
    except ValueError:
        there = False
    path = os.path.abspath(value)
    # A name of the catalog stays one, whatever lies in the current folder.
    return path if there or isinstance(value, os.PathLike) else value


def stamp(value: Any) -> tuple[int, int] | None:
    """Return size and time of change of a file, None of anything else."""
    if not isinstance(value, str) or not Path(value).is_file():
        return None
    status = os.stat(value)
    return status.st_size, status.st_mtime_ns
