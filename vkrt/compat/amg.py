"""Upstream's helpers of the automatic mask generator, as far as others use them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "area_from_rle",
    "batched_mask_to_box",
    "box_xyxy_to_xywh",
    "build_point_grid",
    "calculate_stability_score",
    "mask_to_rle_pytorch",
    "rle_to_mask",
]


def calculate_stability_score(masks: Tensor, mask_threshold: float, threshold_offset: float) -> Any:
    """Return the share (...,) of a mask that a higher threshold leaves of a lower one's.

    Args:
        masks: (..., H, W) logits.
        mask_threshold: what both thresholds are around.
        threshold_offset: how far each is from it.
    """
    inner = (masks > mask_threshold + threshold_offset).sum((-1, -2))
    outer = (masks > mask_threshold - threshold_offset).sum((-1, -2))
    return inner / outer


def batched_mask_to_box(masks: Tensor) -> Tensor:
    """Return boxes (..., 4) x0, y0, x1, y1 of masks (..., H, W) bool; 0, 0, 0, 0 of empty ones."""
    import torch

    from vkrt.compat.misc import mask_to_box

    flat = masks.reshape(-1, 1, *masks.shape[-2:])
    boxes = mask_to_box(flat).view(*masks.shape[:-2], 4)
    empty = boxes[..., 2:3] < 0
    return torch.where(empty, torch.zeros_like(boxes), boxes).long()


def box_xyxy_to_xywh(box_xyxy: Any) -> Any:
    """Return a box x0, y0, x1, y1 as x, y, width, height, in a list, array or tensor of its own."""
    box = box_xyxy.clone() if hasattr(box_xyxy, "clone") else box_xyxy.copy()
    box[2], box[3] = box[2] - box[0], box[3] - box[1]
    return box


def mask_to_rle_pytorch(tensor: Tensor) -> list[dict[str, Any]]:
    """Return masks (N, H, W) bool as run lengths, column by column, the first run of zeros."""
    height, width = tensor.shape[-2:]
    return [
        {"size": [height, width], "counts": runs(mask)}
        for mask in tensor.bool().cpu().numpy().transpose(0, 2, 1).reshape(len(tensor), -1)
    ]


def runs(flat: np.ndarray) -> list[int]:
    """Return the lengths of runs of equal values in (N,) bool, beginning with False."""
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths: list[int] = np.diff([0, *edges, len(flat)]).tolist()
    return [0, *lengths] if flat[0] else lengths


def rle_to_mask(rle: Mapping[str, Any]) -> np.ndarray:
    """Return the mask (H, W) bool of run lengths as mask_to_rle_pytorch gives them."""
    height, width = rle["size"]
    values = np.arange(len(rle["counts"])) % 2 == 1
    return np.repeat(values, rle["counts"]).reshape(width, height).T


def area_from_rle(rle: Mapping[str, Any]) -> int:
    """Return the pixels inside a mask of run lengths."""
    return sum(rle["counts"][1::2])


def build_point_grid(n_per_side: int) -> np.ndarray:
    """Return the n * n centres (n * n, 2) of the cells of a grid over [0, 1] by [0, 1], by rows."""
    centres = (np.arange(n_per_side) + 0.5) / n_per_side
    x, y = np.meshgrid(centres, centres)
    return np.stack((x, y), axis=-1).reshape(-1, 2)
