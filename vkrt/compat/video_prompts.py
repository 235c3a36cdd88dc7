"""Prompts on frames as upstream's callers give them: tensors, arrays or lists of several shapes."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from vkrt.arguments import shown, whole
from vkrt.errors import PromptError
from vkrt.media.host_arrays import host_array, numbers
from vkrt.media.masks import upsample

__all__ = ["frame_number", "read_box", "read_mask", "read_points"]


def frame_number(value: Any) -> int:
    """Return a frame's number as int: of a numpy one the engine could not make a bit.

    Raises:
        PromptError: it is no whole number.
    """
    return whole("a frame's number", value, -sys.maxsize, sys.maxsize, kind=PromptError)


def read_points(points: Any, labels: Any, optional: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (P, 2) and (P,) float32 of points that may have a batch axis of one before them.

    Args:
        optional: no point at all is the same as None.
    """
    if points is None:
        return None
    spots, kinds = numbers(points, "point"), numbers(labels, "label", rank=0)
    spots = spots[0] if spots.ndim == 3 and len(spots) == 1 else spots
    kinds = kinds[0] if kinds.ndim == 2 and len(kinds) == 1 else kinds
    if optional and not spots.size:
        return None
    if spots.ndim != 2 or spots.shape[1] != 2:
        raise PromptError(f"points must have shape (P, 2) as x, y, not {spots.shape}")
    return spots, kinds


def read_box(box: Any) -> np.ndarray:
    """Return (4,) float32 of a box in any shape that has four numbers."""
    corners = numbers(box, "box")
    if corners.size != 4:
        raise PromptError(f"box must be x0, y0, x1, y1, not shape {corners.shape}")
    return corners.reshape(4)


def read_mask(mask: Any, size: tuple[int, int]) -> np.ndarray:
    """Return (H, W) bool of a mask that may have another size."""
    try:
        inside = host_array(mask)
    except Exception:
        raise PromptError(f"mask must be (H, W) bool, not {shown(mask)}") from None
    if inside.ndim != 2 or inside.size == 0 or inside.dtype.kind not in "buif":
        raise PromptError(f"mask must be (H, W) bool, not {inside.shape} {inside.dtype}")
    inside = inside > 0
    if inside.shape == size:
        return inside
    stretched: np.ndarray = upsample(inside.astype(np.float32)[None], *size)[0] >= 0.5
    return stretched
