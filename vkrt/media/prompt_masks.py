"""Masks as prompts: logits of an earlier answer, or a mask of the photo's own size."""

from __future__ import annotations

from typing import Any

import numpy as np

from vkrt.errors import PromptError
from vkrt.media.host_arrays import host_array, numbers
from vkrt.media.masks import mask_to_logits

__all__ = ["read_masks", "read_whole_mask", "to_mask"]

# Of 8-bit grey, as mask pictures have it.
WHITE_FROM = 128
# Of the share of a pixel that a mask covers.
COVERED_FROM = 0.5


def to_mask(values: np.ndarray) -> np.ndarray:
    """Return bool of a mask in any of its usual forms.

    Unsigned integers are grey, white on the object: of 0 and 1, or of 0 to 255, from 128 on. Other
    numbers from 0 to 1 are coverage, from a half on; any others are logits, above 0.
    """
    if values.dtype == bool or not values.size:
        return values.astype(bool)
    most = values.max()
    if values.dtype.kind == "u":
        return values >= (WHITE_FROM if most > 1 else 1)
    is_coverage = values.min() >= 0 and most <= 1
    return values >= COVERED_FROM if is_coverage else values > 0


def read_masks(mask: Any, side: int, size: tuple[int, int]) -> np.ndarray:
    """Return mask logits (N, 1, side, side) of a mask prompt.

    Args:
        mask: (h, w), (1, h, w), (N, h, w) or (N, 1, h, w): logits where h and w are `side`, of
            bool or unsigned integers a mask; where they are the photo's, a mask in any form.
        side: of the low-resolution masks.
        size: height and width of the photo.

    Raises:
        PromptError: it has another shape, or holds anything but finite numbers.
    """
    values = numbers(mask, "mask", rank=2)
    if values.shape == (0,):
        return np.zeros((0, 1, side, side), np.float32)
    given = host_array(mask)
    planes = values[:, 0] if values.ndim == 4 and values.shape[1] == 1 else values
    planes = planes[None] if planes.ndim == 2 else planes
    if planes.ndim != 3 or planes.shape[1:] not in ((side, side), size):
        raise PromptError(
            f"mask must be low-resolution logits of shape ({side}, {side}), such as one of "
            f"result.logits, a mask of the photo's own size {size}, or a batch of either, "
            f"not {values.shape}"
        )
    if planes.shape[1:] == (side, side) and given.dtype.kind not in "bu":
        return planes[:, None]
    typed = given if given.dtype.kind in "biuf" else values
    logits = [mask_to_logits(to_mask(plane), side) for plane in typed.reshape(planes.shape)]
    return np.stack(logits) if logits else np.zeros((0, 1, side, side), np.float32)


def read_whole_mask(mask: Any, size: tuple[int, int]) -> np.ndarray:
    """Return (H, W) bool of a mask as large as its frame, in any form that to_mask takes.

    Raises:
        PromptError: it has another size, or holds anything but finite numbers.
    """
    values = numbers(mask, "mask", rank=2)
    given = host_array(mask)
    if values.shape not in (size, (1, *size)):
        raise PromptError(
            f"a mask prompt must be (H, W) = {size} bool, as large as the frame, "
            f"not {given.shape} {given.dtype}"
        )
    return to_mask(given if given.dtype.kind in "biuf" else values).reshape(size)
