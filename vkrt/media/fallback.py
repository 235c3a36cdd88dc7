"""Numpy and Pillow stand-ins for the C++ part: the same functions, slower.

They also are the reference that the C++ part is tested against. `threads` is taken and ignored.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

__all__ = ["binarize", "clean_logits", "flip_small", "resize", "upsample"]

MOVED = 10.0


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


def stretch(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return one (h, w) float32 plane at (height, width), bilinear, corners not aligned."""
    low, high, low_weight, high_weight = axis(plane.shape[1], width)
    wide = plane[:, low] * low_weight + plane[:, high] * high_weight
    low, high, low_weight, high_weight = axis(plane.shape[0], height)
    return wide[low] * low_weight[:, None] + wide[high] * high_weight[:, None]


def upsample(logits: np.ndarray, height: int, width: int, threads: int = 0) -> np.ndarray:
    """Stretch (N, h, w) float32 to (N, height, width)."""
    return np.stack([stretch(plane, height, width) for plane in logits])


def binarize(
    logits: np.ndarray,
    height: int,
    width: int,
    threshold: float,
    offset: float,
    threads: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stretch and threshold: masks (N, height, width), areas (N,) and stability (N,)."""
    masks = np.empty((len(logits), height, width), bool)
    areas = np.empty(len(logits), np.int64)
    stability = np.empty(len(logits), np.float32)
    upper = np.float32(threshold) + np.float32(offset)
    lower = np.float32(threshold) - np.float32(offset)
    for index, plane in enumerate(logits):
        large = stretch(plane, height, width)
        np.greater(large, np.float32(threshold), out=masks[index])
        areas[index] = np.count_nonzero(masks[index])
        outer = np.count_nonzero(large > lower)
        stability[index] = np.count_nonzero(large > upper) / outer if outer else 0.0
    return masks, areas, stability


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
