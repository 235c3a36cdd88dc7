"""What the demo model learns from: masks, their predicted quality, and how features group."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["grouping_loss", "mask_loss", "overlap_of", "round_loss"]

GROUPING_SCALE = 10.0
MAGNITUDE_WEIGHT = 0.02


def mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return cross-entropy plus dice loss (N, M) of logits (N, M, h, w), target (N, h, w)."""
    target = target.unsqueeze(1).expand_as(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((2, 3))
    # Small objects would hardly count in a mean over the picture.
    coverage = target.mean((2, 3))
    entropy = entropy / (coverage + 0.1)
    chance = logits.sigmoid()
    overlap = 2 * (chance * target).sum((2, 3))
    dice = 1 - (overlap + 1) / (chance.sum((2, 3)) + target.sum((2, 3)) + 1)
    return entropy + dice


def overlap_of(logits: Tensor, target: Tensor) -> Tensor:
    """Return the IoU (N, M) of logits (N, M, h, w) with a soft target (N, h, w)."""
    predicted, wanted = logits > 0, (target > 0.5).unsqueeze(1)
    both = (predicted & wanted).sum((2, 3)).float()
    return both / (predicted | wanted).sum((2, 3)).clamp(min=1)


def round_loss(logits: Tensor, iou: Tensor, target: Tensor, ambiguous: Tensor) -> Tensor:
    """Return the loss of one round, a scalar.

    The single mask (0) always learns; of the three others only the best one of an ambiguous
    prompt does (SAM, section 3). The predicted IoU learns for all four.
    """
    losses = mask_loss(logits, target)
    best = losses[:, 1:].min(dim=1).values
    # Not the L1 distance of SAM 2: it hardly moves a score that has gone to 0.
    quality = F.binary_cross_entropy(iou, overlap_of(logits.detach(), target), reduction="none")
    quality = quality.mean(dim=1)
    return (losses[:, 0] + torch.where(ambiguous, best, 0.3 * best) + quality).mean()


def grouping_loss(
    features: tuple[Tensor, Tensor, Tensor], points: Tensor, target: Tensor
) -> tuple[Tensor, float]:
    """Return how badly the encoder's features alone group an object's pixels, and their IoU.

    The cosine of each pixel's feature with that of a clicked pixel is taken as a logit. It
    reaches the encoder without passing the decoder, whose attention is random at first.

    Args:
        features: maps (B, C_i, ...) of strides 16, 4 and 8.
        points: (B, K, 2) clicked pixels of K objects a picture, as x, y of the target's grid.
        target: (B * K, h, w) soft masks at stride 4.
    """
    size = target.shape[-1]
    joined = torch.cat([F.interpolate(f.float(), size, mode="nearest") for f in features], dim=1)
    # Not centred: a common offset would cost nothing here and drown the decoder's positions.
    size_penalty = MAGNITUDE_WEIGHT * features[0].float().square().mean()
    joined = F.normalize(joined, dim=1).flatten(2)
    index = (points[..., 1] * size + points[..., 0]).long()
    clicked = joined.gather(2, index.unsqueeze(1).expand(-1, joined.shape[1], -1))
    logits = GROUPING_SCALE * (clicked.transpose(1, 2) @ joined - 0.5)
    logits = logits.view(-1, 1, size, size)
    loss = mask_loss(logits, target).mean() + size_penalty
    return loss, overlap_of(logits, target).mean().item()
