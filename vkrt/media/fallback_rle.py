"""Numpy stand-ins for the C++ part that reads and writes COCO run lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["decode_masks", "encode_masks", "runs_to_text", "text_to_runs"]

BITS = 5
LOW, SIGN, MORE = 31, 16, 32
MOST_GROUPS = 7  # 35 bits, enough for any difference of two 32-bit numbers
ZERO = ord("0")


def encode_masks(masks: np.ndarray, threads: int = 0) -> list[np.ndarray]:
    """Return the COCO run lengths of (N, H, W) bool: N arrays of uint32."""
    return [encode(mask) for mask in masks]


def encode(mask: np.ndarray) -> np.ndarray:
    """Return the runs of (H, W) bool, column by column, zeros first."""
    pixels = mask.T.ravel()
    edges = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    first = [0, 0] if pixels[0] else [0]
    return np.diff(np.concatenate([first, edges, [pixels.size]])).astype(np.uint32)


def decode_masks(
    runs: Sequence[np.ndarray], height: int, width: int, threads: int = 0
) -> np.ndarray:
    """Return the masks (N, height, width) of N run lengths."""
    masks = np.empty((len(runs), height, width), bool)
    for mask, own in zip(masks, runs, strict=True):
        pixels = np.repeat(np.arange(len(own)) % 2 == 1, own)
        if pixels.size != mask.size:
            relation = "longer" if pixels.size > mask.size else "shorter"
            raise ValueError(f"the runs are {relation} than the mask")
        mask[:] = pixels.reshape(width, height).T
    return masks


def runs_to_text(runs: np.ndarray) -> bytes:
    """Return (K,) uint32 run lengths as COCO's compressed string.

    Each number, from the fourth on less the one two before it, in groups of five bits, lowest
    first, as characters from "0" on; the sixth bit of one says that more follow.
    """
    rest = runs.astype(np.int64)
    rest[3:] -= runs[1:-2]
    characters = np.empty((len(runs), MOST_GROUPS), np.uint8)
    used = np.empty(characters.shape, bool)
    follows = np.ones(len(runs), bool)
    for group in range(MOST_GROUPS):
        low = rest & LOW
        rest >>= BITS
        used[:, group] = follows
        follows = rest != np.where(low & SIGN, -1, 0)
        characters[:, group] = ZERO + low + MORE * follows
        follows &= used[:, group]
    return characters[used].tobytes()


def text_to_runs(text: bytes) -> np.ndarray:
    """Return the (K,) uint32 run lengths of a COCO compressed string.

    Raises:
        ValueError: it is no such string.
    """
    values = np.frombuffer(text, np.uint8).astype(np.int64) - ZERO
    if values.size == 0:
        return np.empty(0, np.uint32)
    if values.min() < 0 or values.max() >= 2 * MORE:
        raise ValueError("the text has a character that is not between '0' and 'o'")
    ends = np.flatnonzero(values < MORE)
    if ends.size == 0 or ends[-1] != values.size - 1:
        raise ValueError("the text ends inside a number")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > MOST_GROUPS:
        raise ValueError("the text has a number of more than 35 bits")
    groups = np.arange(values.size) - np.repeat(starts, lengths)
    runs = np.add.reduceat((values & LOW) << BITS * groups, starts)
    runs -= np.where(values[ends] & SIGN, 1 << BITS * lengths, 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    if runs.min() < 0 or runs.max() >= 2**32:
        raise ValueError("the text has a run length outside 0 to 4294967295")
    return runs.astype(np.uint32)
