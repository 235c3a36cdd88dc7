"""Find the weights among what training scripts keep in one file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from vkrt.errors import CheckpointError
from vkrt.weights.inert_pickle import Inert
from vkrt.weights.safety_limits import MAX_TENSORS, listed, shown
from vkrt.weights.wrapped_names import without_wrapper

__all__ = ["find_state_dict"]


class Shaped(Protocol):
    """Stand for a tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...


T = TypeVar("T", bound=Shaped)

# Where training code puts the weights among the rest; the official files use the first.
WRAPPERS = (
    *("model", "state_dict", "model_state_dict", "model_state", "net", "net_state_dict", "network"),
    *("module", "weights", "params"),
)
# Where it puts their running average.
AVERAGES = (
    *("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "model_ema_state_dict"),
    *("ema_model_state_dict", "ema_weights", "params_ema"),
)
# What they keep beside, whose tensors have the names of weights in some programs.
OPTIMIZERS = ("optim", "scheduler", "lr_scheduler")
# How deep weights lie at most: {"ema": {"module": {...}}}.
MAX_DEPTH = 4
MATRIX = 2
PLAIN = (int, float, str, bool, type(None))


def find_state_dict(path: Path, content: Any, kind: type[T]) -> dict[str, T]:
    """Return the tensors by name in what a file holds.

    They are the content itself, or what it has under a key of WRAPPERS or AVERAGES, or under the
    only key that has any. Where there are weights and their running average, the average is
    taken if it has all the tensors, as it is what training means to be used; a warning says so.
    Numbers and texts beside the tensors are left out.

    Args:
        path: the file, for messages.
        content: plain values, stand-ins and tensors; only what may be the state dict is looked at.
        kind: the class of a tensor.

    Raises:
        CheckpointError: there are none, or what has a name is no tensor.

    Warns:
        RuntimeWarning: there are several sets of weights; says which is taken.
    """
    found = Search(path, kind).find(content)
    if found is None:
        raise CheckpointError(f"{shown(path, 1000)} {why_none(content)}: save a state_dict()")
    if len(found) > MAX_TENSORS:
        raise CheckpointError(
            f"{shown(path, 1000)} holds more than the {MAX_TENSORS:,} tensors that are read: "
            "give the checkpoint of one model"
        )
    tensors = {}
    for name, value in found.items():
        if isinstance(name, str) and isinstance(value, kind):
            tensors[name] = value
        elif not isinstance(name, str) or not isinstance(value, PLAIN):
            raise CheckpointError(
                f"{shown(path, 1000)} holds {described(value)} under {shown(as_name(name))}, not a "
                "tensor: save a state_dict()"
            )
    return tensors


class Search(Generic[T]):
    """Look for the dict that has the tensors; each dict of the file is looked at once.

    Args:
        path: the file, for messages.
        kind: the class of a tensor.
    """

    def __init__(self, path: Path, kind: type[T]) -> None:
        self.path = path
        self.kind = kind
        # A file may hold one dict in many places, and in itself.
        self.seen: dict[int, dict[Any, Any] | None] = {}

    def find(self, content: Any, depth: int = MAX_DEPTH) -> dict[Any, Any] | None:
        """Return the dict that has the tensors, or None."""
        if not isinstance(content, dict) or not depth:
            return None
        if id(content) not in self.seen:
            self.seen[id(content)] = None
            self.seen[id(content)] = self.find_in(content, depth - 1)
        return self.seen[id(content)]

    def find_in(self, content: dict[Any, Any], depth: int) -> dict[Any, Any] | None:
        """Return the dict that has the tensors in one that was not looked at yet."""
        known = {key: self.find(content.get(key), depth) for key in (*WRAPPERS, *AVERAGES)}
        sets = {key: value for key, value in known.items() if value is not None}
        if sets:
            return sets[chosen(self.path, sets)]
        if any(isinstance(value, self.kind) for value in content.values()):
            return content
        others = {}
        for key, value in content.items():
            if isinstance(key, str) and not key.startswith(OPTIMIZERS):
                found = self.find(value, depth)
                if found is not None and has_matrix(found, self.kind):
                    others[key] = found
        if len(others) > 1:
            raise CheckpointError(
                f"{shown(self.path, 1000)} holds several sets of weights ({listed(others)}): "
                'save the one to load under "model"'
            )
        return next(iter(others.values()), None)


def chosen(path: Path, sets: Mapping[str, Mapping[Any, Any]]) -> str:
    """Return the key of the weights to take, and tell which where there are several."""
    plain = next((key for key in WRAPPERS if key in sets), None)
    average = next((key for key in AVERAGES if key in sets), None)
    if average is None or plain is None:
        key = average or plain or ""
    else:
        key = average if names_of(sets[plain]) <= names_of(sets[average]) else plain
    if len(sets) > 1:
        warnings.warn(
            f"{shown(path, 1000)} holds weights under {' and '.join(sets)}: those under {key} are "
            f"taken{', the running average' if key == average else ''}",
            RuntimeWarning,
            stacklevel=2,
        )
    return key


def names_of(state: Mapping[Any, Any]) -> set[str]:
    """Return the names of tensors without what wraps modules."""
    return {without_wrapper(name) for name in state if isinstance(name, str)}


def has_matrix(state: Mapping[Any, Any], kind: type[Shaped]) -> bool:
    """Tell weights from losses and metrics, which are tensors too."""
    return any(isinstance(value, kind) and len(value.shape) >= MATRIX for value in state.values())


def why_none(content: Any) -> str:
    """Return what a file without weights has instead."""
    if not isinstance(content, dict):
        return f"holds {described(content)}, not tensors by name"
    return f"holds no tensors by name but {listed(map(as_name, content)) or 'nothing'}"


def described(value: Any) -> str:
    """Return what a value is."""
    return f"a {shown(value.name if isinstance(value, Inert) else type(value).__name__)}"


def as_name(key: Any) -> str:
    """Return a key of a dict as a message shows it."""
    return key.name if isinstance(key, Inert) else str(key)
