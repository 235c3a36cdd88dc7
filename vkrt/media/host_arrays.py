"""Arrays of numbers on the host: of lists, numpy arrays, and tensors of any device and dtype."""

from __future__ import annotations

from typing import Any

import numpy as np

from vkrt.arguments import shown
from vkrt.errors import PromptError

__all__ = ["element", "host_array", "is_nothing", "numbers"]

# Nested lists are looked through for tensors as far down as a batch of prompts goes.
DEPTH = 4


def host_array(value: Any) -> np.ndarray:
    """Return a value as an array on the host, with the dtype that it has there.

    Tensors may need gradients, be on any device and of any dtype: those that numpy lacks become
    float32. Lists may hold tensors.

    Raises:
        ValueError, TypeError, RuntimeError: it can't be one array.
    """
    return np.asarray(off_device(value, DEPTH))


def off_device(value: Any, depth: int) -> Any:
    """Return a value whose tensors, or those within its lists, are numpy arrays."""
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        tensor = value.detach().cpu()
        # numpy has no bfloat16, nor any float of 8 bits.
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    if depth and isinstance(value, list | tuple):
        return [off_device(each, depth - 1) for each in value]
    return value


def numbers(value: Any, name: str, rank: int = 1) -> np.ndarray:
    """Return `value` as float32.

    Args:
        value: numbers in lists, arrays or tensors.
        name: what one element is called in messages.
        rank: dimensions of one element.

    Raises:
        PromptError: it holds anything but finite numbers; the message names the element.
    """
    try:
        array = host_array(value)
        if array.dtype.kind not in "biufO" or (array.dtype.kind == "O" and holds_text(array)):
            raise TypeError
        with np.errstate(over="ignore"):  # a number beyond float32 is refused as infinite
            array = array.astype(np.float32)
    except Exception:
        raise PromptError(
            f"{odd_one(value, name)} must be numbers in a regular shape, not {shown(value)}"
        ) from None
    if not np.isfinite(array).all():
        place = np.argwhere(~np.isfinite(array))[0][: max(array.ndim - rank, 0)]
        which = element(name, tuple(place), array.shape)
        raise PromptError(f"{which} has a value that is not a finite number; give pixels")
    return array


def holds_text(array: np.ndarray) -> bool:
    """Tell whether an array of objects has texts among them, which float() would read."""
    return any(isinstance(each, str | bytes) for each in array.flat)


def odd_one(value: Any, name: str) -> str:
    """Return the name of the first element that is not like the first one, or just the name."""
    if not isinstance(value, list | tuple) or len(value) < 2:
        return name
    shapes = [regular_shape(each) for each in value]
    for index, shape in enumerate(shapes):
        if shape is None or shape != shapes[0]:
            return element(name, (index,), (len(value),))
    return name


def regular_shape(value: Any) -> tuple[int, ...] | None:
    """Return the shape of numbers in a regular shape, None of anything else."""
    try:
        array = host_array(value)
    except Exception:
        return None
    return array.shape if array.dtype.kind in "biuf" else None


def element(name: str, place: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """Return how a message names one of several: "box 3 of 5", "point 1 of 2 of prompt 4 of 6"."""
    told = name
    inner_first = zip(place[::-1], shape[: len(place)][::-1], strict=True)
    for owner, (index, count) in zip(("", " of prompt"), inner_first, strict=False):
        if count != 1:
            told += f"{owner} {index + 1} of {count}"
    return told


def is_nothing(value: Any) -> bool:
    """Tell whether a value was given but holds nothing: an empty list, or an array of size 0."""
    shape = None if value is None else regular_shape(value)
    return shape is not None and 0 in shape
