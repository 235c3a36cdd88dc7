"""Prompts as a user gives them, checked and brought to the arrays that the mask decoder takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vkrt.errors import PromptError

__all__ = ["BOX_LABELS", "PAD_LABEL", "PromptBatch", "prepare"]

PAD_LABEL = -1
BOX_LABELS = (2, 3)
POINT_LABELS = (0, 1)


@dataclass(frozen=True)
class PromptBatch:
    """Hold the prompts of N objects on one picture.

    Attributes:
        points: (N, P, 2) float32, x, y in pixels of the model's input.
        labels: (N, P) int32: -1 pad, 0 background, 1 foreground, 2 and 3 box corners.
        masks: (N, 1, h, w) float32 logits, or None.
        is_batch: whether the user gave a batch (even of one), so that results keep that axis.
    """

    points: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None
    is_batch: bool


def numbers(value: Any, name: str) -> np.ndarray:
    """Return `value` as float32.

    Raises:
        PromptError: it holds anything but finite numbers.
    """
    try:
        array = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError):
        raise PromptError(f"{name} must be numbers in a regular shape, not {value!r:.80}") from None
    if not np.isfinite(array).all():
        raise PromptError(f"{name} has a value that is not a finite number; give pixels")
    return array


def with_batch_axis(array: np.ndarray, rank: int, name: str, shape: str) -> np.ndarray:
    """Return the array with a leading batch axis.

    Raises:
        PromptError: its rank is neither `rank` (one prompt) nor `rank + 1` (a batch).
    """
    if array.ndim not in (rank, rank + 1):
        raise PromptError(
            f"{name} must have shape {shape}, or that with a batch axis in front, "
            f"not {tuple(array.shape)}"
        )
    return array if array.ndim == rank + 1 else array[None]


def read_points(points: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return points (N, P, 2) and labels (N, P); labels None means all foreground."""
    array = with_batch_axis(numbers(points, "points"), 2, "points", "(P, 2)")
    if array.shape[2] != 2 or array.shape[1] == 0 or array.shape[0] == 0:
        raise PromptError(f"points must have shape (P, 2) with P >= 1, not {np.shape(points)}")
    if labels is None:
        return array, np.ones(array.shape[:2], np.int32)
    kinds = with_batch_axis(numbers(labels, "labels"), 1, "labels", "(P,)")
    if kinds.shape != array.shape[:2]:
        raise PromptError(
            f"labels must be one per point: {array.shape[1]} points of {array.shape[0]} "
            f"prompt(s), but labels of shape {np.shape(labels)}"
        )
    if not np.isin(kinds, (*POINT_LABELS, PAD_LABEL)).all():
        raise PromptError("labels must be 1 (on the object), 0 (not on it) or -1 (padding)")
    return array, kinds.astype(np.int32)


def read_boxes(box: Any) -> np.ndarray:
    """Return boxes (N, 4)."""
    boxes = with_batch_axis(numbers(box, "box"), 1, "box", "(4,) as x0, y0, x1, y1")
    if boxes.shape[1] != 4 or boxes.shape[0] == 0:
        raise PromptError(f"box must be x0, y0, x1, y1, not shape {np.shape(box)}")
    if (boxes[:, 2:] <= boxes[:, :2]).any():
        raise PromptError("box must have x1 > x0 and y1 > y0")
    return boxes


def read_masks(mask: Any, side: int) -> np.ndarray:
    """Return mask logits (N, 1, side, side) of (h, w), (1, h, w), (N, h, w) or (N, 1, h, w)."""
    masks = numbers(mask, "mask")
    if masks.ndim in (2, 3, 4) and masks.shape[-2:] == (side, side):
        if masks.ndim == 2:
            return masks[None, None]
        if masks.ndim == 3:
            return masks[:, None]
        if masks.shape[1] == 1:
            return masks
    raise PromptError(
        f"mask must be low-resolution logits of shape ({side}, {side}), such as one of "
        f"result.logits, or a batch of them, not {tuple(masks.shape)}"
    )


def check_inside(points: np.ndarray, labels: np.ndarray, size: tuple[int, int]) -> None:
    """Refuse a point that is not on the picture of `size` (height, width).

    Raises:
        PromptError: naming the first such point.
    """
    height, width = size
    outside = (points < 0).any(-1) | (points > (width, height)).any(-1)
    wrong = points[outside & (labels != PAD_LABEL)]
    if len(wrong):
        x, y = wrong[0]
        raise PromptError(
            f"point ({x:g}, {y:g}) is outside the photo, which is {width} wide and {height} high"
        )


def clip_boxes(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Cut boxes to the picture of `size` (height, width): detectors give some that reach out.

    Raises:
        PromptError: a box lies wholly outside.
    """
    height, width = size
    clipped = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
    empty = boxes[(clipped[:, 2:] <= clipped[:, :2]).any(1)]
    if len(empty):
        corners = ", ".join(f"{v:g}" for v in empty[0])
        raise PromptError(
            f"box ({corners}) is outside the photo, which is {width} wide and {height} high"
        )
    return clipped


def prepare(
    size: tuple[int, int],
    image_size: int,
    points: Any = None,
    labels: Any = None,
    box: Any = None,
    mask: Any = None,
    strict: bool = True,
) -> PromptBatch:
    """Check prompts and bring them to the model's input.

    Args:
        size: height and width of the picture, in pixels.
        image_size: side of the model's input, in pixels.
        points: (P, 2) or (N, P, 2) x, y in pixels of the picture.
        labels: (P,) or (N, P): 1 on the object, 0 not on it, -1 padding; None means all 1.
        box: (4,) or (N, 4) x0, y0, x1, y1 in pixels of the picture.
        mask: earlier logits, (h, w) or (N, h, w).
        strict: refuse points outside the picture and cut boxes to it.

    Raises:
        PromptError: there is none, or one does not fit the picture or the others.
    """
    if labels is not None and points is None:
        raise PromptError("labels were given without points")
    parts_points: list[np.ndarray] = []
    parts_labels: list[np.ndarray] = []
    batched = []
    if box is not None:
        boxes = read_boxes(box)
        boxes = clip_boxes(boxes, size) if strict else boxes
        parts_points.append(boxes.reshape(-1, 2, 2))
        parts_labels.append(np.tile(np.array(BOX_LABELS, np.int32), (len(boxes), 1)))
        batched.append(np.ndim(box) == 2)
    if points is not None:
        array, kinds = read_points(points, labels)
        if strict:
            check_inside(array, kinds, size)
        parts_points.append(array)
        parts_labels.append(kinds)
        batched.append(np.ndim(points) == 3)
    masks = None if mask is None else read_masks(mask, image_size // 4)
    if masks is not None:
        batched.append(len(masks) > 1)
    return join(parts_points, parts_labels, masks, any(batched), size, image_size)


def join(
    points: list[np.ndarray],
    labels: list[np.ndarray],
    masks: np.ndarray | None,
    is_batch: bool,
    size: tuple[int, int],
    image_size: int,
) -> PromptBatch:
    """Put the parts of each prompt side by side, scaled to the model's input."""
    counts = {len(part) for part in points} | ({len(masks)} if masks is not None else set())
    if not counts:
        raise PromptError("no prompt was given: pass points, a box or a mask")
    if len(counts) > 1:
        raise PromptError(
            "points, box and mask must be for the same number of prompts, "
            f"not {', '.join(map(str, sorted(counts)))}"
        )
    count = counts.pop()
    if points:
        # The prompt encoder was trained with a pad where a box might be.
        points = [*points, np.zeros((count, 1, 2), np.float32)]
        labels = [*labels, np.full((count, 1), PAD_LABEL, np.int32)]
    else:
        points, labels = [np.zeros((count, 0, 2), np.float32)], [np.zeros((count, 0), np.int32)]
    scale = np.array([image_size / size[1], image_size / size[0]], np.float32)
    return PromptBatch(
        points=np.concatenate(points, axis=1) * scale,
        labels=np.concatenate(labels, axis=1),
        masks=masks,
        is_batch=is_batch,
    )
