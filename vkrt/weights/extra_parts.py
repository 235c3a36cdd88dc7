"""Leave out of a checkpoint what no model of vkrt has, and say so; imports no torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from vkrt.weights.safety_limits import listed, shown

__all__ = ["split_off", "warn_left_out"]

T = TypeVar("T")


def split_off(
    tensors: Mapping[str, T], part_of: Callable[[str], str | None]
) -> tuple[dict[str, T], dict[str, int]]:
    """Return the tensors that are of no other part, and how many of each part there were.

    Args:
        tensors: by name.
        part_of: the known part that a name is of, None for the model's own.
    """
    kept: dict[str, T] = {}
    left: dict[str, int] = {}
    for name, tensor in tensors.items():
        part = part_of(name)
        if part is None:
            kept[name] = tensor
        else:
            left[part] = left.get(part, 0) + 1
    return kept, left


def warn_left_out(path: Path | str, left: Mapping[str, int]) -> None:
    """Name the parts that were left out, and how many tensors each has; nothing for none."""
    if left:
        parts = listed(f"{part} ({count})" for part, count in left.items())
        warnings.warn(
            f"{shown(path, 1000)}: left out what the model does not use: {parts}",
            RuntimeWarning,
            stacklevel=2,
        )
