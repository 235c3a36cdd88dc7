"""Simulated users: clicks and boxes drawn from a mask, and corrections from where it is wrong."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["boxes_of", "noisy_boxes", "sample_clicks"]

CLICK_STRIDE = 2
INTERIOR_STRIDE = 2
INTERIOR_WINDOWS = (3, 9)


def interior_weight(region: Tensor) -> Tensor:
    """Return how deep inside its region each pixel lies, (N, H, W) in [0, 1].

    Box means on a coarse grid stand in for a distance transform, which has no batched form.
    """
    coarse = F.avg_pool2d(region.float().unsqueeze(1), INTERIOR_STRIDE)
    total = coarse
    for window in INTERIOR_WINDOWS:
        total = total * F.avg_pool2d(coarse, window, stride=1, padding=window // 2)
    return F.interpolate(total, region.shape[1:], mode="nearest").squeeze(1)


def sample_clicks(region: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one pixel of each region, half of the time near its middle.

    Args:
        region: (N, H, W) bool; an empty one gives the centre of the picture.
        generator: the source of randomness.

    Returns:
        (N, 2) x, y in pixels.
    """
    # A click need not be exact to the pixel, and a quarter of the pixels is a quarter of the work.
    region = region[:, ::CLICK_STRIDE, ::CLICK_STRIDE]
    count, height, width = region.shape
    noise = torch.rand(region.shape, generator=generator)
    near_middle = torch.rand((count, 1, 1), generator=generator) < 0.5
    # The noise of 0.3 still moves the click about the middle, as a hand does.
    middle = interior_weight(region) * (0.7 + 0.3 * noise)
    score = torch.where(near_middle, middle, noise) * region
    best = score.flatten(1).argmax(dim=1)
    points = torch.stack((best % width, best // width), dim=1).float()
    empty = ~region.flatten(1).any(dim=1, keepdim=True)
    points = torch.where(empty, torch.tensor([width / 2, height / 2]), points)
    return points * CLICK_STRIDE


def boxes_of(masks: Tensor) -> Tensor:
    """Return the tight boxes (N, 4) as x0, y0, x1, y1 of masks (N, H, W) bool, in pixels."""
    edges = []
    for axis, size in ((1, masks.shape[2]), (2, masks.shape[1])):
        present = masks.any(dim=axis)
        positions = torch.arange(size)
        low = torch.where(present, positions, size).amin(dim=1)
        high = torch.where(present, positions, -1).amax(dim=1) + 1
        edges.append((low, high))
    (x0, x1), (y0, y1) = edges
    return torch.stack((x0, y0, x1, y1), dim=1).float()


def noisy_boxes(masks: Tensor, generator: torch.Generator, spread: float = 0.1) -> Tensor:
    """Return boxes whose corners are off by a normal error of up to `spread` of their sides.

    Some users draw tight boxes and some do not, so how far a box is off is drawn as well. The
    error is at most 20 pixels of a 1024 picture (SAM, appendix A), scaled to this one.
    """
    boxes = boxes_of(masks)
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    limit = 20 / 1024 * masks.shape[-1]
    care = torch.rand((len(boxes), 1), generator=generator)
    error = torch.randn(boxes.shape, generator=generator) * sides * spread * care
    return (boxes + error.clamp(-limit, limit)).clamp(0, masks.shape[-1])
