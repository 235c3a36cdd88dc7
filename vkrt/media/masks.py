"""Masks: choosing among a decoder's, bringing them to the photo's size, cleaning, files."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
from PIL import Image

from vkrt.errors import ImageError
from vkrt.media import fallback
from vkrt.media.files import write_atomically
from vkrt.media.image import read_image
from vkrt.media.native import operations
from vkrt.media.planes import as_logits, as_masks, check_size

__all__ = [
    "Binarized",
    "binarize",
    "binarize_apart",
    "choose",
    "clean_logits",
    "fill_holes",
    "fill_small_holes",
    "magnitude",
    "mask_to_input",
    "mask_to_logits",
    "read_mask",
    "remove_sprinkles",
    "unpack",
    "upsample",
    "write_mask",
]

STABILITY_OFFSET = 0.05
STABILITY_LEAST = 0.98
# A mask as a prompt: 20 * coverage - 10, as SAM 2 gives masks to its memory encoder.
# The logit of a filled hole of a tracked mask.
FILLED = 0.1
PROMPT_SCALE = 20.0
PROMPT_BIAS = -10.0


class Binarized(NamedTuple):
    """Hold masks at the photo's size.

    Attributes:
        masks: (N, H, W) bool; packed, (N, H, ceil(W / 8)) uint8.
        areas: (N,) int64, pixels of each mask.
        stability: (N,) float32 in [0, 1]: pixels above threshold + offset over pixels above
            threshold - offset; 0 where there are none of either.
        boxes: (N, 4) float32 x0, y0, x1, y1: the first and last column and row with a pixel, as
            SAM 2 and torchvision have it; 0, 0, 0, 0 for an empty mask.
    """

    masks: np.ndarray
    areas: np.ndarray
    stability: np.ndarray
    boxes: np.ndarray


def choose(
    logits: np.ndarray, iou: np.ndarray, multimask: bool, dynamic: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return the masks to show of a decoder's four.

    With multimask, the three of masks 1 to 3. Without, the single mask 0; and if dynamic, wherever
    that is unstable (pixels above 0.05 over pixels above -0.05 less than 0.98), the one of masks 1
    to 3 with the highest predicted IoU instead, as SAM 2's dynamic multimask does.

    Args:
        logits: (N, 4, h, w) float.
        iou: (N, 4) float, predicted.

    Returns:
        logits (N, M, h, w) and iou (N, M), M being 3 or 1.
    """
    if multimask:
        return logits[:, 1:], iou[:, 1:]
    picked = np.zeros(len(iou), np.int64)
    if dynamic:
        single = logits[:, 0]
        inner = np.count_nonzero(single > STABILITY_OFFSET, axis=(1, 2))
        outer = np.count_nonzero(single > -STABILITY_OFFSET, axis=(1, 2))
        stable = np.where(outer > 0, inner / np.maximum(outer, 1), 1.0) >= STABILITY_LEAST
        picked = np.where(stable, 0, 1 + np.argmax(iou[:, 1:], axis=1))
    rows = np.arange(len(iou))
    return logits[rows, picked][:, None], iou[rows, picked][:, None]


def upsample(logits: np.ndarray, height: int, width: int, threads: int | None = None) -> np.ndarray:
    """Stretch logits (N, h, w) to (N, height, width) float32, bilinear, corners not aligned.

    Raises:
        ImageError: the logits are no such array, or a mask can't have the size.
    """
    logits = as_logits(logits)
    check_size(*logits.shape[1:])
    check_size(height, width)
    run = operations if len(logits) else fallback
    large: np.ndarray = run.upsample(logits, height, width, threads or 0)
    return large


def binarize(
    logits: np.ndarray,
    height: int,
    width: int,
    threshold: float = 0.0,
    offset: float = 1.0,
    threads: int | None = None,
    packed: bool = False,
) -> Binarized:
    """Stretch logits to a photo's size and threshold them, in one pass.

    The same masks as upsample and a comparison, to the pixel, without a float image of the full
    size. vkrt.media.rle has the same with run lengths instead of masks.

    Args:
        logits: (N, h, w) float32.
        height, width: the photo's.
        threshold: a pixel is in the mask where its logit is above.
        offset: how far the threshold moves either way for the stability.
        threads: CPU threads; None is one per core, at most 8.
        packed: give masks with eight pixels a byte, as unpack and numpy.unpackbits take them: an
            eighth of the memory.

    Raises:
        ImageError: the logits are no such array, or a mask can't have the size.
    """
    logits = as_logits(logits)
    check_size(*logits.shape[1:])
    check_size(height, width)
    run = operations if len(logits) else fallback
    return Binarized(*run.binarize(logits, height, width, threshold, offset, threads or 0, packed))


def binarize_apart(
    logits: np.ndarray, height: int, width: int, threads: int | None = None
) -> np.ndarray:
    """Stretch the logits of objects to a picture's size and give each pixel to one of them.

    A pixel is that of the object with the largest logit there, if it is above 0.

    Args:
        logits: (N, h, w) float32.
        height, width: the picture's.

    Returns:
        (N, height, width) bool.

    Raises:
        ImageError: the logits are no such array, or a mask can't have the size.
    """
    large = upsample(logits, height, width, threads)
    if len(large) < 2:
        return large > 0
    owner = large.argmax(axis=0)
    return (large > 0) & (owner == np.arange(len(large)).reshape(-1, 1, 1))


def unpack(masks: np.ndarray, width: int) -> np.ndarray:
    """Return packed masks (..., ceil(width / 8)) uint8 as (..., width) bool.

    Raises:
        ImageError: they are no such array.
    """
    if masks.dtype != np.uint8 or masks.ndim == 0 or masks.shape[-1] != -(-width // 8):
        raise ImageError(
            f"packed masks {width} pixels wide must be (..., {-(-width // 8)}) uint8, "
            f"not {masks.shape} {masks.dtype}; give the width that they were made with"
        )
    return np.unpackbits(masks, axis=-1, count=width).view(bool)


def magnitude(logits: np.ndarray) -> np.ndarray:
    """Return (N,) float32, the mean logit over the pixels inside each mask; 0 for an empty one.

    Inside is logit > 0, so the mean of the logits is that of their absolute values.

    Args:
        logits: (N, h, w) float.
    """
    inside = logits > 0
    counts = np.count_nonzero(inside, axis=(1, 2))
    # Several times as fast as a sum with where=.
    totals = np.where(inside, logits, 0).sum(axis=(1, 2), dtype=np.float64)
    return (totals / np.maximum(counts, 1)).astype(np.float32)


def fill_holes(masks: np.ndarray, max_area: int, threads: int | None = None) -> np.ndarray:
    """Return (N, H, W) bool with 8-connected background of at most max_area pixels filled.

    Raises:
        ImageError: the masks have another number of dimensions.
    """
    return flip_small(masks, False, max_area, threads)


def remove_sprinkles(masks: np.ndarray, max_area: int, threads: int | None = None) -> np.ndarray:
    """Return (N, H, W) bool without 8-connected foreground of at most max_area pixels.

    Raises:
        ImageError: the masks have another number of dimensions.
    """
    return flip_small(masks, True, max_area, threads)


def flip_small(masks: np.ndarray, value: bool, max_area: int, threads: int | None) -> np.ndarray:
    """Return masks with the small components of `value` flipped; always a copy."""
    masks = as_masks(masks)
    if masks.size == 0 or max_area <= 0:
        return masks.copy()
    return operations.flip_small(masks, value, int(max_area), threads or 0)


def clean_logits(
    logits: np.ndarray,
    threshold: float = 0.0,
    max_hole_area: int = 0,
    max_sprinkle_area: int = 0,
    threads: int | None = None,
) -> np.ndarray:
    """Return logits with small holes set to threshold + 10 and sprinkles to threshold - 10.

    Holes are 8-connected components at or below the threshold, sprinkles those above it, of at
    most so many low-resolution pixels; a limit of 0 leaves them. Both are found in the logits as
    given (source: SAM 2's postprocess_masks, which does this before it upsamples).

    Args:
        logits: (N, h, w) float32; not changed.

    Raises:
        ImageError: the logits are no such array.
    """
    logits = as_logits(logits)
    if logits.size == 0 or (max_hole_area <= 0 and max_sprinkle_area <= 0):
        return logits.copy()
    return operations.clean_logits(
        logits, threshold, max(int(max_hole_area), 0), max(int(max_sprinkle_area), 0), threads or 0
    )


def fill_small_holes(logits: np.ndarray, max_area: int, threads: int | None = None) -> np.ndarray:
    """Return logits (N, h, w) with holes of at most max_area pixels at 0.1.

    That is how SAM 2 fills masks that it tracks; clean_logits is for single pictures.

    Raises:
        ImageError: the logits are no such array.
    """
    if max_area <= 0:
        return logits
    filled = clean_logits(logits, max_hole_area=max_area, threads=threads)
    return np.where(filled != logits, np.float32(FILLED), logits)


def mask_to_logits(mask: np.ndarray, size: int) -> np.ndarray:
    """Return a mask as a prompt: (1, size, size) float32 logits in [-10, 10].

    Each low-resolution pixel is 20 * coverage - 10, coverage being the share of mask pixels under
    it.

    Args:
        mask: (H, W) bool, or numbers of which those above 0 are the mask.
        size: the side of the decoder's low-resolution masks.

    Raises:
        ImageError: the mask has no pixels or another number of dimensions.
    """
    if mask.ndim != 2 or mask.size == 0:
        raise ImageError(f"a mask prompt must be (H, W), not {mask.shape}")
    inside = Image.fromarray((mask > 0).astype(np.float32))
    coverage = np.asarray(inside.resize((size, size), Image.Resampling.BOX))
    coverage = np.clip(coverage, 0, 1)  # the filter's rounding may go beyond
    return (coverage * np.float32(PROMPT_SCALE) + np.float32(PROMPT_BIAS))[None]


def mask_to_input(mask: np.ndarray, size: int) -> np.ndarray:
    """Stretch a mask to a network's input: (size, size) float32 of 0 and 1.

    A pixel is in the mask where the antialiased bilinear resize gives at least a half, as SAM 2
    has it for masks given on frames.

    Args:
        mask: (H, W) bool.
    """
    grey = Image.fromarray(mask.astype(np.float32))
    stretched = np.asarray(grey.resize((size, size), Image.Resampling.BILINEAR))
    return (stretched >= 0.5).astype(np.float32)


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Return (H, W) bool of a mask picture: True where any channel is above 127.

    Of a picture that has no value above 1, as label maps of one object, it is True where that is 1.

    Raises:
        ImageError: as read_image.
    """
    grey = read_image(path).max(axis=2)
    found: np.ndarray = grey > (127 if grey.max() > 1 else 0)
    return found


def write_mask(path: str | os.PathLike[str], mask: np.ndarray) -> None:
    """Write (H, W) bool as an 8-bit grey PNG of 0 and 255.

    Raises:
        OutputError: as write_atomically.
    """
    picture = Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0)))
    write_atomically(path, lambda stream: picture.save(stream, format="PNG"))
