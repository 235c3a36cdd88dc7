"""Prompts as a user gives them, checked and brought to the arrays that the mask decoder takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vkrt.errors import PromptError
from vkrt.media.host_arrays import element, is_nothing, numbers
from vkrt.media.prompt_masks import read_masks

__all__ = ["BOX_LABELS", "PAD_LABEL", "PromptBatch", "numbers", "prepare"]

PAD_LABEL = -1
BOX_LABELS = (2, 3)
POINT_LABELS = (0, 1)


@dataclass(frozen=True)
class PromptBatch:
    """Hold the prompts of N objects on one picture; N is 0 where there was nothing to prompt.

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


@dataclass(frozen=True)
class Part:
    """Hold the points, or the corners of the boxes, of N prompts.

    Attributes:
        points: (N, P, 2) float32, x, y in pixels of the picture.
        labels: (N, P) int32.
        is_batch: whether they were given as a batch.
    """

    points: np.ndarray
    labels: np.ndarray
    is_batch: bool

    @property
    def has_box(self) -> bool:
        """Tell whether there are corners of boxes among the points."""
        return bool((self.labels == BOX_LABELS[0]).any())


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


def read_points(points: Any, labels: Any, size: tuple[int, int], strict: bool) -> Part:
    """Return points with their labels; labels None means all foreground."""
    given = numbers(points, "point")
    # An empty list is of no point, whatever the shape of one.
    given = given.reshape(0, 2) if given.shape == (0,) else given
    array = with_batch_axis(given, 2, "points", "(P, 2)")
    if array.shape[2] != 2:
        raise PromptError(f"points must have shape (P, 2), not {given.shape}")
    kinds = read_labels(labels, array.shape[:2])
    if strict:
        array = fit_corners(array, kinds, size)
        check_inside(array, kinds, size)
    return Part(array, kinds, given.ndim == 3)


def read_labels(labels: Any, shape: tuple[int, int]) -> np.ndarray:
    """Return labels (N, P) int32 of points of that shape."""
    if labels is None:
        return np.ones(shape, np.int32)
    given = numbers(labels, "label", rank=0)
    if not given.size and 0 in shape:
        return np.ones(shape, np.int32)
    kinds = with_batch_axis(given, 1, "labels", "(P,)")
    if kinds.shape != shape:
        raise PromptError(
            f"labels must be one per point: {shape[1]} points of {shape[0]} "
            f"prompt(s), but labels of shape {given.shape}"
        )
    wrong = ~np.isin(kinds, (*POINT_LABELS, *BOX_LABELS, PAD_LABEL))
    if wrong.any():
        place = tuple(np.argwhere(wrong)[0])
        raise PromptError(
            "labels must be 1 (on the object), 0 (not on it), 2 and 3 (corners of a box) or -1 "
            f"(padding): {element('label', place, shape)} is {kinds[place]:g}"
        )
    return kinds.astype(np.int32)


def read_boxes(box: Any, size: tuple[int, int], strict: bool) -> Part:
    """Return boxes as their corners."""
    given = numbers(box, "box")
    if given.shape == (0,):
        given = given.reshape(0, 4)
    if not strict and given.shape[-1:] == (4,) and given.ndim > 2:
        given = given.reshape(-1, 4)
    boxes = with_batch_axis(given, 1, "box", "(4,) as x0, y0, x1, y1")
    if boxes.shape[1] != 4:
        raise PromptError(f"box must be x0, y0, x1, y1, not shape {given.shape}")
    boxes = fit_boxes(boxes, size) if strict else boxes
    labels = np.tile(np.array(BOX_LABELS, np.int32), (len(boxes), 1))
    return Part(boxes.reshape(-1, 2, 2), labels, given.ndim == 2)


def check_inside(points: np.ndarray, labels: np.ndarray, size: tuple[int, int]) -> None:
    """Refuse a point that is not on the picture of `size` (height, width).

    Raises:
        PromptError: naming the first such point.
    """
    height, width = size
    outside = (points < 0).any(-1) | (points > (width, height)).any(-1)
    wrong = np.argwhere(outside & (labels != PAD_LABEL))
    if len(wrong):
        place = tuple(wrong[0])
        x, y = points[place]
        raise PromptError(
            f"{element('point', place, labels.shape)} ({x:g}, {y:g}) is outside the photo, which "
            f"is {width} wide and {height} high"
        )


def fit_boxes(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Cut boxes to the picture of `size` (height, width): detectors give some that reach out.

    Raises:
        PromptError: the corners of a box are swapped or on one line, or it lies wholly outside.
    """
    height, width = size
    unordered = (boxes[:, 2:] <= boxes[:, :2]).any(1)
    if unordered.any():
        raise PromptError(f"{called(boxes, unordered)} must have x1 > x0 and y1 > y0")
    clipped = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
    outside = (clipped[:, 2:] <= clipped[:, :2]).any(1)
    if outside.any():
        raise PromptError(
            f"{called(boxes, outside)} is outside the photo, which is {width} wide and {height} "
            "high"
        )
    return clipped


def called(boxes: np.ndarray, wrong: Any) -> str:
    """Return how a message names the first box that is wrong."""
    index = int(wrong.argmax())
    corners = ", ".join(f"{v:g}" for v in boxes[index])
    return f"{element('box', (index,), (len(boxes),))} ({corners})"


def fit_corners(points: np.ndarray, labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return points whose box corners, those with labels 2 and 3, are cut to the picture.

    Args:
        points: (N, P, 2).
        labels: (N, P).
        size: height and width of the picture.

    Raises:
        PromptError: a prompt has one corner without the other or several, or they do not fit.
    """
    first, second = (labels == label for label in BOX_LABELS)
    counts = np.stack((first.sum(1), second.sum(1)), axis=1)
    uneven = (counts != counts[:, :1]).any(1) | (counts > 1).any(1)
    if uneven.any():
        which = element("prompt", (int(uneven.argmax()),), (len(labels),))
        raise PromptError(
            f"{which}: labels 2 and 3 are the corners of one box, top left and bottom right: give "
            "one of each"
        )
    if not first.any():
        return points
    boxes = np.concatenate((points[first], points[second]), axis=1)
    fitted = points.copy()
    fitted[first], fitted[second] = np.split(fit_boxes(boxes, size), 2, axis=1)
    return fitted


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

    Numbers may be lists, arrays or tensors of any device and dtype. A batch of no prompts, such as
    boxes of shape (0, 4), gives a batch of none; beside the prompt of one object, an empty list or
    batch says nothing.

    Args:
        size: height and width of the picture, in pixels.
        image_size: side of the model's input, in pixels.
        points: (P, 2) or (N, P, 2) x, y in pixels of the picture.
        labels: (P,) or (N, P): 1 on the object, 0 not on it, 2 and 3 the top left and the bottom
            right corner of a box, -1 padding; None means all 1.
        box: (4,) or (N, 4) x0, y0, x1, y1 in pixels of the picture.
        mask: as read_masks takes it.
        strict: refuse points outside the picture and boxes with swapped corners or outside it, cut
            boxes to it, and refuse to be given nothing; else take all of them as they are.

    Raises:
        PromptError: there is none, or one does not fit the picture or the others.
    """
    if points is None and labels is not None and not is_nothing(labels):
        raise PromptError("labels were given without points")
    parts = [] if box is None else [read_boxes(box, size, strict)]
    if points is not None:
        parts.append(read_points(points, labels, size, strict))
    if len(parts) == 2 and all(part.has_box for part in parts):
        raise PromptError("points with labels 2 and 3 are a box: give them or box, not both")
    masks = None if mask is None else read_masks(mask, image_size // 4, size)
    said, masks = leave_out_silent(parts, masks)
    if not said and masks is None and strict:
        raise PromptError("no prompt was given: pass points, a box or a mask")
    return join(said, masks, size, image_size)


def leave_out_silent(
    parts: list[Part], masks: np.ndarray | None
) -> tuple[list[Part], np.ndarray | None]:
    """Return the parts that say something: prompts without points don't.

    Beside the prompt of one object, a batch of none says nothing either.
    """
    said = [part for part in parts if part.labels.shape[1]]
    one = any(not part.is_batch for part in said) or (masks is not None and len(masks) == 1)
    if not one:
        return said, masks
    masks = masks if masks is not None and len(masks) else None
    return [part for part in said if len(part.labels)], masks


def join(
    parts: list[Part], masks: np.ndarray | None, size: tuple[int, int], image_size: int
) -> PromptBatch:
    """Put the parts of each prompt side by side, scaled to the model's input."""
    counts = {len(part.labels) for part in parts} | ({len(masks)} if masks is not None else set())
    if len(counts) > 1:
        raise PromptError(
            "points, box and mask must be for the same number of prompts, "
            f"not {', '.join(map(str, sorted(counts)))}"
        )
    count = counts.pop() if counts else 1
    # The prompt encoder was trained with a pad where a box might be.
    pads = 1 if parts else 0
    points = [*(part.points for part in parts), np.zeros((count, pads, 2), np.float32)]
    labels = [*(part.labels for part in parts), np.full((count, pads), PAD_LABEL, np.int32)]
    scale = np.array([image_size / size[1], image_size / size[0]], np.float32)
    return PromptBatch(
        points=np.concatenate(points, axis=1) * scale,
        labels=np.concatenate(labels, axis=1),
        masks=masks,
        is_batch=any(part.is_batch for part in parts) or (masks is not None and len(masks) != 1),
    )
