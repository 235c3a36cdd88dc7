"""The simulated user of interactive segmentation: clicks in the middle of what is wrong."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt

__all__ = ["Click", "box_of", "correction", "deepest", "iou"]

# x, y in pixels and the label: 1 on the object, 0 not on it.
Click = tuple[int, int, int]


def depth(region: np.ndarray) -> np.ndarray:
    """Return each pixel's distance to the outside of a region (H, W) bool, the border included."""
    return distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]


def deepest(region: np.ndarray) -> tuple[int, int, float]:
    """Return x, y of the pixel deepest inside a region (H, W) bool, and its depth; 0 if empty."""
    inside = depth(region)
    y, x = np.unravel_index(inside.argmax(), inside.shape)
    return int(x), int(y), float(inside[y, x])


def correction(shown: np.ndarray, wanted: np.ndarray) -> Click | None:
    """Return a click in the middle of the larger error, or None where there is none.

    Missed and superfluous pixels are compared by how deep they reach (source: the evaluation of
    SAM, https://arxiv.org/abs/2304.02643, appendix A, after RITM).
    """
    missed, extra = deepest(wanted & ~shown), deepest(shown & ~wanted)
    label = int(missed[2] >= extra[2])
    x, y, reach = missed if label else extra
    return (x, y, label) if reach > 0 else None


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the tight box x0, y0, x1, y1 of a mask that is not empty, the far edges outside."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Return the intersection of two masks over their union; 1 if both are empty."""
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 1.0
