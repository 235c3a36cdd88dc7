"""What upstream shows of a frame: logits of all objects at the clip's size."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from vkrt.media.masks import fill_small_holes, upsample

__all__ = ["NO_OBJECT", "apart", "full_size"]

# The logits of an object without an answer, and at most of what others own.
NO_OBJECT = -1024.0
OVERLAPPED = -10.0


def full_size(
    known: Mapping[Hashable, np.ndarray],
    objects: Sequence[Hashable],
    size: tuple[int, int],
    fill_hole_area: int = 0,
    threads: int | None = None,
) -> np.ndarray:
    """Return logits (N, 1, H, W) float32 of all objects; -1024 of one without an answer.

    Args:
        known: (h, w) float32 by object, of those that have an answer.
        objects: the N ids.
        size: height and width of the frame.
        fill_hole_area: largest hole that is filled, in low-resolution pixels.
        threads: CPU threads; None is one per core.
    """
    full = np.full((len(objects), 1, *size), NO_OBJECT, np.float32)
    rows = [row for row, obj in enumerate(objects) if obj in known]
    if rows:
        low = np.stack([known[objects[row]] for row in rows])
        low = fill_small_holes(low, fill_hole_area, threads)
        full[rows, 0] = upsample(low, *size, threads=threads)
    return full


def apart(masks: Any) -> Any:
    """Leave each pixel of logits (N, 1, H, W), a tensor, to the object with the largest one.

    Those of the others are -10 there at most.
    """
    import torch

    if len(masks) < 2:
        return masks
    owner = masks.argmax(dim=0, keepdim=True)
    rows = torch.arange(len(masks), device=masks.device).view(-1, 1, 1, 1)
    return torch.where(owner == rows, masks, masks.clamp(max=OVERLAPPED))
