"""What a prompt on a photo gives: masks at the photo's size, and how good they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Masks", "no_answer"]

# Of one prompt: the three proposals, or the one mask.
PROPOSALS = 3


@dataclass(frozen=True)
class Masks:
    """Hold the answer to a prompt: N masks, or B batches of N for B prompts; B may be 0.

    Attributes:
        masks: (N, H, W) or (B, N, H, W) bool at the photo's own size.
        scores: (N,) or (B, N) float32, predicted IoU in [0, 1].
        stability: (N,) or (B, N) float32 in [0, 1]: area above +1 over area above -1 logit.
        magnitude: (N,) or (B, N) float32, mean logit inside the mask.
        areas: (N,) or (B, N) int64, pixels inside.
        logits: (N, h, w) or (B, N, h, w) float32 at low resolution; `mask=` takes one back.
        object_scores: (1,) or (B, 1) float32 logits: above 0, the prompt names an object.
    """

    masks: np.ndarray
    scores: np.ndarray
    stability: np.ndarray
    magnitude: np.ndarray
    areas: np.ndarray
    logits: np.ndarray
    object_scores: np.ndarray

    @property
    def best(self) -> Any:
        """Return the index of the highest score: an int, or (B,) int64 for a batch."""
        index = self.scores.argmax(axis=-1)
        return index if self.scores.ndim > 1 else int(index)


def no_answer(side: int, multimask: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what a decoder gives for a batch of no prompts.

    Args:
        side: of the low-resolution masks.
        multimask: whether it would give three masks a prompt, or one.

    Returns:
        logits (0, N, side, side), predicted IoU (0, N) and object score logits (0, 1).
    """
    kept = PROPOSALS if multimask else 1
    shapes = (0, kept, side, side), (0, kept), (0, 1)
    logits, scores, object_scores = (np.empty(shape, np.float32) for shape in shapes)
    return logits, scores, object_scores
