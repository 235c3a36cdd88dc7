"""What tracking gives for a frame: a mask of each object at the frame's own size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vkrt.arguments import flag, whole
from vkrt.errors import PromptError
from vkrt.media.masks import binarize, binarize_apart, clean_logits

__all__ = ["Finish", "TrackedFrame", "finish_of"]

# Of the C++ that fills holes.
MAX_HOLE = 2**31 - 1


@dataclass(frozen=True)
class TrackedFrame:
    """Hold the masks of N objects on one frame.

    Attributes:
        frame: its index.
        obj_ids: the N ids.
        masks: (N, H, W) bool at the frame's own size; empty where an object is not visible.
        scores: (N,) float32, predicted IoU in [0, 1].
        object_scores: (N,) float32 logits: above 0, the object is visible.
        logits: (N, h, w) float32 at low resolution.
    """

    frame: int
    obj_ids: tuple[int, ...]
    masks: np.ndarray
    scores: np.ndarray
    object_scores: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True)
class Finish:
    """Say how low-resolution logits become masks.

    Attributes:
        fill_holes: largest hole that is filled, in low-resolution pixels; 0 leaves all.
        non_overlapping: give a pixel that several objects claim to the surest one alone.
        threads: CPU threads; None is one per core.
    """

    fill_holes: int = 0
    non_overlapping: bool = False
    threads: int | None = None

    def frame(
        self,
        index: int,
        size: tuple[int, int],
        obj_ids: Sequence[int],
        logits: Sequence[np.ndarray],
        scores: Sequence[float],
        object_scores: Sequence[float],
    ) -> TrackedFrame:
        """Return the frame of objects, given what the model said of each."""
        stacked = np.stack(logits)
        clean = clean_logits(stacked, max_hole_area=self.fill_holes, threads=self.threads)
        if self.non_overlapping:
            masks = binarize_apart(clean, *size, threads=self.threads)
        else:
            masks = binarize(clean, *size, threads=self.threads).masks
        return TrackedFrame(
            frame=index,
            obj_ids=tuple(obj_ids),
            masks=masks,
            scores=np.array(scores, np.float32),
            object_scores=np.array(object_scores, np.float32),
            logits=stacked,
        )


def finish_of(fill_holes: int, non_overlapping: bool, threads: int | None) -> Finish:
    """Return how masks are finished.

    Raises:
        PromptError: a value can't be.
    """
    largest = whole("fill_holes", fill_holes, 0, MAX_HOLE, kind=PromptError)
    apart = flag("non_overlapping", non_overlapping, kind=PromptError)
    return Finish(largest, apart, threads)
