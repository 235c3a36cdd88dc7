"""Upstream's transforms: pictures to the model's input, prompts to its pixels, logits to masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vkrt.media.image import read_image, to_input
from vkrt.media.masks import clean_logits

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SAM2Transforms"]


class SAM2Transforms:
    """Bring pictures and prompts to a model's input, and logits back to a picture's size.

    Args:
        resolution: side of the model's input, in pixels.
        mask_threshold: logit above which a pixel is in a mask.
        max_hole_area: fill holes of at most this many low-resolution pixels.
        max_sprinkle_area: remove islands of at most this many low-resolution pixels.
    """

    def __init__(
        self,
        resolution: int,
        mask_threshold: float,
        max_hole_area: float = 0.0,
        max_sprinkle_area: float = 0.0,
    ) -> None:
        self.resolution = resolution
        self.mask_threshold = mask_threshold
        self.max_hole_area = max_hole_area
        self.max_sprinkle_area = max_sprinkle_area

    def __call__(self, x: Any) -> Tensor:
        """Return a picture as (3, S, S) float32, resized and normalized.

        Raises:
            ImageError: it is no picture.
        """
        import torch

        return torch.from_numpy(to_input(read_image(x, upright=False), self.resolution))

    def forward_batch(self, img_list: Sequence[Any]) -> Tensor:
        """Return pictures of any sizes as (B, 3, S, S)."""
        import torch

        return torch.stack([self(image) for image in img_list])

    def transform_coords(
        self, coords: Tensor, normalize: bool = False, orig_hw: tuple[int, int] | None = None
    ) -> Tensor:
        """Return points (..., 2) in pixels of the model's input.

        Args:
            coords: x, y in [0, 1], or with `normalize` in pixels of the picture.
            normalize: divide by the picture's size first.
            orig_hw: height and width of the picture.
        """
        if normalize:
            assert orig_hw is not None
            height, width = orig_hw
            coords = coords / coords.new_tensor([width, height])
        return coords * self.resolution

    def transform_boxes(
        self, boxes: Tensor, normalize: bool = False, orig_hw: tuple[int, int] | None = None
    ) -> Tensor:
        """Return boxes (..., 4) as their corners (B, 2, 2) in pixels of the model's input."""
        return self.transform_coords(boxes.reshape(-1, 2, 2), normalize, orig_hw)

    def postprocess_masks(self, masks: Tensor, orig_hw: tuple[int, int]) -> Tensor:
        """Return logits (B, C, h, w) at a picture's size (height, width), without small holes."""
        from torch.nn.functional import interpolate

        cleaned = self.clean(masks.float()) if self.cleans else masks.float()
        size = int(orig_hw[0]), int(orig_hw[1])
        return interpolate(cleaned, size, mode="bilinear", align_corners=False)

    @property
    def cleans(self) -> bool:
        """Tell whether holes or islands are to go."""
        return self.max_hole_area > 0 or self.max_sprinkle_area > 0

    def clean(self, masks: Tensor) -> Tensor:
        """Return logits (B, C, h, w) without small holes and islands."""
        import torch

        flat = self.clean_array(masks.detach().flatten(0, 1).cpu().numpy())
        changed = torch.from_numpy(flat).to(masks.device).view(masks.shape)
        # What is kept stays the caller's own, with its gradients.
        return torch.where(changed == masks, masks, changed)

    def clean_array(self, logits: np.ndarray) -> np.ndarray:
        """Return logits (N, h, w) without small holes and islands."""
        if not self.cleans:
            return logits
        return clean_logits(
            logits, self.mask_threshold, int(self.max_hole_area), int(self.max_sprinkle_area)
        )
