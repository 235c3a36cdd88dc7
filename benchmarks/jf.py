"""J and F, the measures of DAVIS for masks in clips: how regions overlap, how contours agree."""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import distance_transform_edt

from vkrt.export.int8.gate import mask_iou

__all__ = ["contour", "contour_agreement", "region_overlap"]

TOLERANCE = 0.008  # of the picture's diagonal


def region_overlap(shown: np.ndarray, wanted: np.ndarray) -> float:
    """Return J, the intersection over union of two masks (H, W) bool; 1 if both are empty."""
    return mask_iou(shown, wanted)


def contour(mask: np.ndarray) -> np.ndarray:
    """Return the pixels (H, W) bool of a mask's contour: those that differ from the next ones.

    Next are the pixel to the right, the one below and the one between; the border of the picture
    is no contour (source: the evaluation of DAVIS, https://arxiv.org/abs/1704.00675).
    """
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask != padded[:-1, 1:]) | (mask != padded[1:, :-1]) | (mask != padded[1:, 1:])


def contour_agreement(shown: np.ndarray, wanted: np.ndarray, tolerance: float = TOLERANCE) -> float:
    """Return F, the harmonic mean of precision and recall of a mask's contour.

    A pixel of one contour counts as found where the other contour is within the tolerance, a
    share of the diagonal that is rounded up to whole pixels.

    Args:
        shown: (H, W) bool, the answer.
        wanted: (H, W) bool, the truth.
        tolerance: share of the diagonal.

    Returns:
        F in [0, 1]; 1 if neither mask has a contour, 0 if only one of them has.
    """
    reach = math.ceil(tolerance * math.hypot(*wanted.shape))
    found, true = contour(shown), contour(wanted)
    if not found.any() or not true.any():
        return float(found.any() == true.any())
    precision = share_near(found, true, reach)
    recall = share_near(true, found, reach)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def share_near(pixels: np.ndarray, others: np.ndarray, reach: int) -> float:
    """Return the share of pixels that have one of the others within a reach in pixels."""
    # As near as a disc of that radius about each of the others would reach.
    distance = distance_transform_edt(~others)
    return float((distance[pixels] <= reach).mean())
