"""Boxes: of masks, and which to keep of many that overlap."""

from __future__ import annotations

from typing import Any

import numpy as np

from vkrt.errors import PromptError
from vkrt.media.native import operations
from vkrt.media.planes import as_masks, check_size

__all__ = ["measure", "nms"]


def measure(masks: np.ndarray, threads: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the areas (N,) int64 and boxes (N, 4) float32 of masks (N, H, W) bool.

    A box is x0, y0, x1, y1: the first and last column and row with a pixel, as SAM 2 and
    torchvision have it; 0, 0, 0, 0 for an empty mask. vkrt.media.masks.binarize gives the same
    along with new masks; this is for masks that were changed since.

    Raises:
        ImageError: the masks are no such array.
    """
    masks = as_masks(masks)
    if len(masks) == 0:
        return np.empty(0, np.int64), np.empty((0, 4), np.float32)
    check_size(*masks.shape[1:])
    areas, boxes = operations.measure(masks, threads or 0)
    return areas, boxes


def nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Return (K,) int64, the places of the boxes to keep, by falling score.

    Greedy: the box with the highest score is kept, all that overlap it with
    IoU = shared / (area + area - shared) > threshold are dropped, and so on with the rest. Of equal
    scores the first comes first. A side is x1 - x0, and all arithmetic float32, as in torchvision.

    Args:
        boxes: (N, 4) x0, y0, x1, y1 with x0 <= x1 and y0 <= y1.
        scores: (N,).
        threshold: of the IoU; at 1 or above everything is kept.

    Raises:
        PromptError: the boxes or scores are no such arrays, something is not a finite number, or
            the threshold is below 0.
    """
    corners = finite(boxes, "boxes", 2)
    ranks = finite(scores, "scores", 1)
    if corners.shape != (len(ranks), 4):
        raise PromptError(
            f"boxes must be (N, 4) and scores (N,), not {corners.shape} and {ranks.shape}; "
            "give each box one score"
        )
    if (corners[:, :2] > corners[:, 2:]).any():
        raise PromptError("boxes must have x0 <= x1 and y0 <= y1; give x0, y0, x1, y1 in pixels")
    if not 0 <= threshold < np.inf:
        raise PromptError(f"an IoU threshold can't be {threshold}; give one from 0 to 1")
    return operations.nms(corners, ranks, float(threshold))


def finite(values: Any, name: str, dimensions: int) -> np.ndarray:
    """Return values as contiguous float32.

    Raises:
        PromptError: they are not finite numbers in that many dimensions.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "biuf" or array.ndim != dimensions:
        raise PromptError(
            f"{name} must be numbers in {dimensions} dimension(s), "
            f"not {array.dtype} in {array.ndim}; give an array of float32"
        )
    with np.errstate(over="ignore"):  # a number beyond float32 is refused as infinite
        array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise PromptError(f"{name} has a value that is not a finite number; leave that one out")
    return array
