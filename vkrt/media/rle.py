"""Masks as COCO run lengths: from logits or masks, as COCO writes them, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vkrt.errors import ImageError
from vkrt.media import fallback
from vkrt.media.native import operations
from vkrt.media.planes import as_logits, as_masks, check_size

__all__ = ["EncodedMasks", "Rle", "decode", "encode", "encode_logits"]


@dataclass(frozen=True, eq=False)
class Rle:
    """Hold one mask as run lengths.

    Attributes:
        height, width: of the mask, in pixels.
        counts: (K,) uint32, lengths of runs of pixels column by column: a run of zeros (of length
            0 if the first pixel is set), then one of ones, and so on.

    Raises:
        ImageError: a mask can't have the size, or the runs do not add up to it.
    """

    height: int
    width: int
    counts: np.ndarray

    def __post_init__(self) -> None:
        check_size(self.height, self.width)
        if self.counts.dtype != np.uint32 or self.counts.ndim != 1:
            raise ImageError(
                f"run lengths must be (K,) uint32, not {self.counts.shape} {self.counts.dtype}; "
                "convert them first"
            )
        total = int(self.counts.sum(dtype=np.uint64))
        if total != self.height * self.width:
            raise ImageError(
                f"run lengths add up to {total} pixels, not to those of a mask of "
                f"{self.width}x{self.height}; give the size as height, width"
            )

    @property
    def area(self) -> int:
        """Return how many pixels the mask has."""
        return int(self.counts[1::2].sum(dtype=np.uint64))

    def to_coco(self, compressed: bool = True) -> dict[str, Any]:
        """Return {"size": [height, width], "counts": ...}, ready for JSON.

        Args:
            compressed: give the counts as COCO's string; else as a list of integers.
        """
        size = [self.height, self.width]
        if not compressed:
            return {"size": size, "counts": self.counts.tolist()}
        text = operations.runs_to_text(np.ascontiguousarray(self.counts))
        return {"size": size, "counts": text.decode()}

    @classmethod
    def from_coco(cls, value: Mapping[str, Any]) -> Rle:
        """Return what a COCO record {"size": [height, width], "counts": ...} says.

        Args:
            value: its counts are a list of integers, a string or bytes.

        Raises:
            ImageError: the record is damaged.
        """
        if not isinstance(value, Mapping) or not {"size", "counts"} <= value.keys():
            raise ImageError('a COCO mask must be {"size": [height, width], "counts": ...}')
        height, width = read_size(value["size"])
        return cls(height, width, read_counts(value["counts"]))


class EncodedMasks(NamedTuple):
    """Hold masks at the photo's size as run lengths.

    Attributes:
        rles: one of each mask.
        areas, stability, boxes: as vkrt.media.masks.Binarized has them.
    """

    rles: list[Rle]
    areas: np.ndarray
    stability: np.ndarray
    boxes: np.ndarray


def read_size(size: Any) -> tuple[int, int]:
    """Return height and width of a COCO record's size."""
    try:
        sides = np.asarray(size)
    except ValueError:
        sides = np.empty(0)
    if sides.shape != (2,) or sides.dtype.kind not in "iu":
        raise ImageError(f"the size of a COCO mask must be [height, width], not {size!r:.60}")
    return int(sides[0]), int(sides[1])


def read_counts(counts: Any) -> np.ndarray:
    """Return the (K,) uint32 run lengths of a COCO record's counts."""
    if isinstance(counts, str | bytes):
        try:
            return operations.text_to_runs(counts.encode() if isinstance(counts, str) else counts)
        except ValueError as error:
            raise ImageError(f"COCO counts are damaged ({error}); get them again") from None
    try:
        runs = np.asarray(counts)
    except ValueError:
        runs = np.empty(0)
    if runs.ndim != 1 or runs.dtype.kind not in "iu":
        raise ImageError("COCO counts must be a string or a list of integers, zeros' run first")
    if runs.min(initial=0) < 0 or runs.max(initial=0) >= 2**32:
        raise ImageError("COCO counts have a run length outside 0 to 4294967295; get them again")
    return runs.astype(np.uint32)


def encode(masks: np.ndarray, threads: int | None = None) -> list[Rle]:
    """Return masks (N, H, W) bool as run lengths.

    Args:
        masks: what numpy takes as bool.
        threads: CPU threads; None is one per core, at most 8.

    Raises:
        ImageError: the masks are no such array.
    """
    masks = as_masks(masks)
    if len(masks) == 0:
        return []
    height, width = masks.shape[1:]
    check_size(height, width)
    return [Rle(height, width, runs) for runs in operations.encode_masks(masks, threads or 0)]


def encode_logits(
    logits: np.ndarray,
    height: int,
    width: int,
    threshold: float = 0.0,
    offset: float = 1.0,
    threads: int | None = None,
) -> EncodedMasks:
    """Stretch logits to a photo's size, threshold and encode them, in one pass.

    The same as vkrt.media.masks.binarize and encode, without masks of the full size in between.

    Args:
        logits: (N, h, w) float32.
        height, width: the photo's.
        threshold: a pixel is in the mask where its logit is above.
        offset: how far the threshold moves either way for the stability.
        threads: CPU threads; None is one per core, at most 8.

    Raises:
        ImageError: the logits are no such array, or a mask can't have the size.
    """
    logits = as_logits(logits)
    check_size(*logits.shape[1:])
    check_size(height, width)
    run = operations if len(logits) else fallback
    runs, *rest = run.encode_logits(logits, height, width, threshold, offset, threads or 0)
    return EncodedMasks([Rle(height, width, each) for each in runs], *rest)


def decode(rles: Sequence[Rle], threads: int | None = None) -> np.ndarray:
    """Return the masks (N, H, W) bool of run lengths of one size.

    Args:
        rles: at least one.
        threads: CPU threads; None is one per core, at most 8.

    Raises:
        ImageError: there are none, they have several sizes, or there is no memory for the masks.
    """
    sizes = sorted({(each.height, each.width) for each in rles})
    if len(sizes) != 1:
        found = ", ".join(f"{width}x{height}" for height, width in sizes) or "none at all"
        raise ImageError(f"masks to decode must be of one size, not {found:.80}; decode each size")
    counts = [np.ascontiguousarray(each.counts) for each in rles]
    height, width = sizes[0]
    try:
        return operations.decode_masks(counts, height, width, threads or 0)
    except MemoryError:
        raise ImageError(
            f"there is no memory for {len(rles)} masks of {width}x{height}; decode fewer at once"
        ) from None
