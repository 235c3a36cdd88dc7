"""The choice among the decoder's four masks while tracking, made inside the graph."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["choose_mask", "take"]

# A mask is stable where its area hardly changes between two thresholds of the logits.
STABILITY_OFFSET = 0.05
STABILITY_LEAST = 0.98


def choose_mask(logits: Tensor, iou: Tensor, multimask: Tensor) -> tuple[Tensor, Tensor]:
    """Return which of its four masks each object shows, and whose token speaks for it.

    Where multimask is 1, the one of masks 1 to 3 with the highest predicted IoU, and its token.
    Where it is 0, mask 0, or that same one where mask 0 is unstable (SAM 2's dynamic multimask);
    where it is -1, mask 0 in any case; and always token 0 in both.

    Args:
        logits: (N, 4, h, w).
        iou: (N, 4), predicted.
        multimask: (N,) integers from -1 to 1.

    Returns:
        (N,) and (N,) int64, 0 to 3.
    """
    best, several = iou[:, 1:].argmax(dim=1) + 1, multimask > 0
    single = torch.where(is_stable(logits[:, 0]) | (multimask < 0), 0, best)
    return torch.where(several, best, single), torch.where(several, best, 0)


def is_stable(logits: Tensor) -> Tensor:
    """Return whether masks (N, h, w) are stable: (N,) bool; one without any area is."""
    inner = (logits > STABILITY_OFFSET).flatten(1).sum(dim=1)
    outer = (logits > -STABILITY_OFFSET).flatten(1).sum(dim=1)
    share = torch.where(outer > 0, inner / outer.clamp(min=1), 1.0)
    return share >= STABILITY_LEAST


def take(four: Tensor, chosen: Tensor) -> Tensor:
    """Return the chosen one of four of each object: (N, 4, ...) and (N,) to (N, ...)."""
    rows = torch.arange(four.shape[0], device=four.device) * four.shape[1] + chosen
    return four.flatten(0, 1)[rows]
