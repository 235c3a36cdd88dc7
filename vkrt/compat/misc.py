"""Upstream's small helpers for masks and points, on tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vkrt.media.masks import fill_small_holes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["concat_points", "fill_holes_in_mask_scores", "mask_to_box"]


def mask_to_box(masks: Tensor) -> Tensor:
    """Return boxes (B, 1, 4) int32 x0, y0, x1, y1 of masks (B, 1, H, W) bool.

    x1 and y1 are of the last pixel inside. An empty mask gives W, H, -1, -1.
    """
    import torch

    height, width = masks.shape[-2:]
    sides = []
    for axis, size in ((-2, width), (-1, height)):
        inside = masks.bool().any(dim=axis)
        places = torch.arange(size, dtype=torch.int32, device=masks.device).expand(inside.shape)
        sides.append(torch.where(inside, places, size).amin(-1))
        sides.append(torch.where(inside, places, -1).amax(-1))
    x0, x1, y0, y1 = sides
    return torch.stack((x0, y0, x1, y1), dim=-1)


def fill_holes_in_mask_scores(mask: Tensor, max_area: int) -> Tensor:
    """Return logits (N, 1, H, W) whose holes of at most `max_area` pixels are 0.1."""
    import torch

    filled = fill_small_holes(mask.detach().float().flatten(0, 1).cpu().numpy(), max_area)
    return torch.from_numpy(filled).to(mask).view(mask.shape)


def concat_points(
    old_point_inputs: Mapping[str, Tensor] | None, new_points: Tensor, new_labels: Tensor
) -> dict[str, Tensor]:
    """Return points (B, P, 2) and labels (B, P) with new ones behind them."""
    import torch

    added = {"point_coords": new_points, "point_labels": new_labels}
    if old_point_inputs is None:
        return added
    return {name: torch.cat((old_point_inputs[name], new), dim=1) for name, new in added.items()}
