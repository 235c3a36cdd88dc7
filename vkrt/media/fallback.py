"""Numpy and Pillow stand-ins for the C++ part: the same functions, slower.

They also are the reference that the C++ part is tested against. `threads` is taken and ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from vkrt.media.fallback_rle import decode_masks, encode_masks, runs_to_text, text_to_runs

__all__ = [
    "binarize",
    "clean_logits",
    "decode_masks",
    "encode_logits",
    "encode_masks",
    "flip_small",
    "measure",
    "nms",
    "resize",
    "resize_bicubic",
    "runs_to_text",
    "text_to_runs",
    "upsample",
]

MOVED = 10.0
BAND = 64  # rows whose floats are there at a time


def resize(
    photo: np.ndarray,
    size: int,
    scale: Sequence[float],
    bias: Sequence[float],
    out: np.ndarray | None = None,
    threads: int = 0,
) -> np.ndarray:
    """Resize (H, W, 3) uint8 to (3, size, size) float32, times scale plus bias per channel.

    Pillow's bilinear filter is the antialiased triangle that PyTorch has.
    """
    if out is None:
        out = np.empty((3, size, size), np.float32)
    for channel, (factor, shift) in enumerate(zip(scale, bias, strict=True)):
        plane = Image.fromarray(photo[:, :, channel].astype(np.float32))
        small = np.asarray(plane.resize((size, size), Image.Resampling.BILINEAR))
        np.multiply(small, np.float32(factor), out=out[channel])
        out[channel] += np.float32(shift)
    return out


def resize_bicubic(
    photo: np.ndarray,
    size: int,
    scale: Sequence[float],
    bias: Sequence[float],
    out: np.ndarray | None = None,
    threads: int = 0,
    down_first: bool = False,
) -> np.ndarray:
    """As resize, with Pillow's bicubic filter, which rounds each pass to bytes.

    The order of the passes is Pillow's own.
    """
    small = Image.fromarray(photo).resize((size, size), Image.Resampling.BICUBIC)
    planes = np.asarray(small).transpose(2, 0, 1)
    factor, shift = (np.array(each, np.float32)[:, None, None] for each in (scale, bias))
    return np.add(planes * factor, shift, out=out)


def axis(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return for each target index the two source indices around it and their weights."""
    # float32 on purpose, so that a pixel at the threshold falls on the side where PyTorch puts it.
    scale = np.float32(source) / np.float32(target)
    half = np.float32(0.5)
    at = np.maximum(scale * (np.arange(target, dtype=np.float32) + half) - half, np.float32(0))
    low = np.minimum(at.astype(np.int64), source - 1)
    high = np.minimum(low + 1, source - 1)
    weight = np.clip(at - low.astype(np.float32), 0, 1)
    return low, high, 1 - weight, weight


def bands(plane: np.ndarray, height: int, width: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Give one (h, w) float32 plane at (height, width), bilinear, a few rows at a time."""
    low, high, low_weight, high_weight = axis(plane.shape[1], width)
    wide = plane[:, low] * low_weight + plane[:, high] * high_weight
    low, high, low_weight, high_weight = axis(plane.shape[0], height)
    for begin in range(0, height, BAND):
        rows = slice(begin, min(begin + BAND, height))
        top = wide[low[rows]] * low_weight[rows, None]
        yield rows, top + wide[high[rows]] * high_weight[rows, None]


def upsample(logits: np.ndarray, height: int, width: int, threads: int = 0) -> np.ndarray:
    """Stretch (N, h, w) float32 to (N, height, width)."""
    large = np.empty((len(logits), height, width), np.float32)
    for target, plane in zip(large, logits, strict=True):
        for rows, values in bands(plane, height, width):
            target[rows] = values
    return large


def binarize(
    logits: np.ndarray,
    height: int,
    width: int,
    threshold: float,
    offset: float,
    threads: int = 0,
    packed: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Stretch and threshold: masks (N, height, width), areas, stability (N,), boxes (N, 4).

    Packed masks have eight pixels a byte, as numpy.packbits has them.
    """
    masks = np.empty((len(logits), height, width), bool)
    stability = np.zeros(len(logits), np.float32)
    middle = np.float32(threshold)
    upper, lower = middle + np.float32(offset), middle - np.float32(offset)
    for index, plane in enumerate(logits):
        inner = outer = 0
        for rows, values in bands(plane, height, width):
            np.greater(values, middle, out=masks[index, rows])
            inner += np.count_nonzero(values > upper)
            outer += np.count_nonzero(values > lower)
        if outer:
            stability[index] = inner / outer
    areas, boxes = measure(masks)
    return np.packbits(masks, axis=-1) if packed else masks, areas, stability, boxes


def encode_logits(
    logits: np.ndarray,
    height: int,
    width: int,
    threshold: float,
    offset: float,
    threads: int = 0,
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """As binarize, with the masks' run lengths instead of the masks."""
    masks, areas, stability, boxes = binarize(logits, height, width, threshold, offset)
    return encode_masks(masks), areas, stability, boxes


def measure(masks: np.ndarray, threads: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return areas (N,) int64 and boxes (N, 4) float32 of (N, H, W) bool.

    A box is the first and last column and row with a pixel; 0, 0, 0, 0 where there is none.
    """
    areas = np.array([np.count_nonzero(mask) for mask in masks], np.int64)
    boxes = np.zeros((len(masks), 4), np.float32)
    for index in np.flatnonzero(areas):
        columns = np.flatnonzero(masks[index].any(axis=0))
        rows = np.flatnonzero(masks[index].any(axis=1))
        boxes[index] = columns[0], rows[0], columns[-1], rows[-1]
    return areas, boxes


def nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Return (K,) int64, the places of the boxes (N, 4) to keep, by falling score."""
    order = np.argsort(-scores, kind="stable")
    boxes = boxes[order]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    dropped = np.zeros(len(boxes), bool)
    for best in range(len(boxes)):
        if not dropped[best]:
            rest = slice(best + 1, None)
            corner = np.maximum(boxes[rest, :2], boxes[best, :2])
            sides = np.maximum(np.minimum(boxes[rest, 2:], boxes[best, 2:]) - corner, 0)
            shared = sides[:, 0] * sides[:, 1]
            with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
                iou = shared / (areas[best] + areas[rest] - shared)
            dropped[rest] |= iou > np.float32(threshold)
    return order[~dropped]


def find_runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return row, first and end (exclusive) of each run of True in (H, W), in reading order."""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, firsts = np.nonzero(edges == 1)
    return rows, firsts, np.nonzero(edges == -1)[1]


def touching(
    rows: np.ndarray, firsts: np.ndarray, ends: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs of runs that touch across two rows, corners included."""
    pitch = width + 2  # keeps the keys of one row apart from those of the next
    above = (rows - 1) * pitch
    begin = np.searchsorted(rows * pitch + ends, above + firsts, side="left")
    stop = np.searchsorted(rows * pitch + firsts, above + ends, side="right")
    counts = np.maximum(stop - begin, 0)
    lower = np.repeat(np.arange(len(rows)), counts)
    skipped = np.cumsum(counts) - counts
    upper = np.arange(counts.sum()) - np.repeat(skipped - begin, counts)
    return upper, lower


def join(count: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a root for each of `count` items, the same for items that pairs (a, b) connect."""
    parents = np.arange(count)
    while True:
        a, b = parents[a], parents[b]
        apart = a != b
        if not apart.any():
            return parents
        a, b = a[apart], b[apart]
        np.minimum.at(parents, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(parents, parents[parents]):
            parents = parents[parents]


def small_components(mask: np.ndarray, max_area: int) -> np.ndarray:
    """Return (H, W) bool: the 8-connected components of True with at most max_area pixels."""
    rows, firsts, ends = find_runs(mask)
    roots = join(len(rows), *touching(rows, firsts, ends, mask.shape[1]))
    areas = np.zeros(len(rows), np.int64)
    np.add.at(areas, roots, ends - firsts)
    small = areas[roots] <= max_area
    marks = np.zeros((mask.shape[0], mask.shape[1] + 1), np.int8)
    # Two runs of a row have a gap between them, so no two marks meet.
    marks[rows[small], firsts[small]] = 1
    marks[rows[small], ends[small]] = -1
    return np.cumsum(marks, axis=1, dtype=np.int8)[:, :-1].astype(bool)


def flip_small(masks: np.ndarray, value: bool, max_area: int, threads: int = 0) -> np.ndarray:
    """Return (N, H, W) bool with the small components of `value` flipped."""
    return np.stack([mask ^ small_components(mask == value, max_area) for mask in masks])


def clean_logits(
    logits: np.ndarray,
    threshold: float,
    max_hole_area: int,
    max_sprinkle_area: int,
    threads: int = 0,
) -> np.ndarray:
    """Return (N, h, w) float32 with small holes filled and small sprinkles removed."""
    cleaned = logits.copy()
    for plane, target in zip(logits, cleaned, strict=True):
        if max_hole_area > 0:
            target[small_components(plane <= threshold, max_hole_area)] = threshold + MOVED
        if max_sprinkle_area > 0:
            target[small_components(plane > threshold, max_sprinkle_area)] = threshold - MOVED
    return cleaned
