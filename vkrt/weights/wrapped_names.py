"""Take off tensor names what wrappers of modules put on them; imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from vkrt.errors import CheckpointError
from vkrt.weights.safety_limits import shown

__all__ = ["prefixes_before", "unwrapped", "without_wrapper"]

T = TypeVar("T")

# Of DataParallel and DeepSpeed, torch.compile, FSDP, activation checkpointing and Fabric.
WRAPPERS = frozenset(
    {
        *("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"),
        "_forward_module",
    }
)


def without_wrapper(name: str) -> str:
    """Return a tensor's name without the steps through wrappers, wherever they are."""
    steps = name.split(".")
    if WRAPPERS.isdisjoint(steps):
        return name
    return ".".join(step for step in steps if step not in WRAPPERS)


def unwrapped(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return tensors under their names without wrappers.

    Raises:
        CheckpointError: two names become one.
    """
    named: dict[str, T] = {}
    for name, tensor in tensors.items():
        bare = without_wrapper(name)
        if bare in named:
            raise CheckpointError(
                f"{shown(bare)} comes twice, inside a wrapper and without: save one model to a file"
            )
        named[bare] = tensor
    return named


def prefixes_before(names: Iterable[str], marks: Iterable[str]) -> list[str]:
    """Return what stands before any of some names' beginnings, such as "model.", shortest first.

    Args:
        names: of a file.
        marks: what names of a model start with.
    """
    found = set()
    every = tuple(marks)
    for name in names:
        for mark in every:
            prefix, match, _ = name.partition(mark)
            if match and (not prefix or prefix.endswith(".")):
                found.add(prefix)
    return sorted(found, key=lambda prefix: (len(prefix), prefix))
