"""Stacks of masks and of logits as callers give them, checked and brought in line."""

from __future__ import annotations

from typing import Any

import numpy as np

from vkrt.errors import ImageError

__all__ = ["LONGEST_SIDE", "as_logits", "as_masks", "check_size"]

# Beyond this, float32 can't place pixels exactly.
LONGEST_SIDE = 2**24
MOST_PIXELS = 2**31 - 1


def as_logits(logits: Any) -> np.ndarray:
    """Return logits as contiguous (N, h, w) float32, copied only where they are not.

    Raises:
        ImageError: they are not numbers, or have another number of dimensions.
    """
    return stack(logits, "logits", np.float32)


def as_masks(masks: Any) -> np.ndarray:
    """Return masks as contiguous (N, H, W) bool, copied only where they are not.

    Raises:
        ImageError: they are not numbers, or have another number of dimensions.
    """
    return stack(masks, "masks", np.bool_)


def stack(values: Any, name: str, dtype: type[np.generic]) -> np.ndarray:
    """Return three dimensions of a dtype."""
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise ImageError(f"{name} must be numbers, not {array.dtype}; convert them first")
    if array.ndim != 3:
        raise ImageError(
            f"{name} must have shape (N, height, width), not {array.shape}; "
            f"give one of them as {name}[None]"
        )
    return np.ascontiguousarray(array, dtype)


def check_size(height: int, width: int) -> None:
    """Refuse a size that no mask can have.

    Raises:
        ImageError: a side is below 1 or beyond LONGEST_SIDE, or both together are too many pixels.
    """
    sides_fit = 1 <= height <= LONGEST_SIDE and 1 <= width <= LONGEST_SIDE
    if not sides_fit or height * width > MOST_PIXELS:
        raise ImageError(
            f"a mask can't be {width}x{height}; give a height and width from 1 to {LONGEST_SIDE} "
            "and fewer than 2**31 pixels in all"
        )
