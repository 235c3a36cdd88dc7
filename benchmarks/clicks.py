"""The simulated user of interactive segmentation: clicks in the middle of what is wrong."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt

__all__ = ["Click", "correction", "deepest"]

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
