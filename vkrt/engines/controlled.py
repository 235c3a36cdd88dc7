"""A ControlNet beside the transformer: its condition, and the residuals of each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vkrt.engines.calls import Calls
from vkrt.engines.patches import to_patches

__all__ = ["Control", "canny_pixels", "residual_map"]


def residual_map(depth: int, layers: int, scale: float, profile: str) -> tuple[np.ndarray, ...]:
    """Say which residual of a ControlNet is added behind each block of the transformer.

    Residual i * layers // depth is added behind block i; the "diffusers" profile adds none behind
    the last block.

    Args:
        depth: blocks of the transformer.
        layers: residuals of the ControlNet.
        scale: what a residual is multiplied with.
        profile: "reference" or "diffusers".

    Returns:
        index (depth,) int64 and scale (depth,) float32.
    """
    index = np.arange(depth, dtype=np.int64) * layers // depth
    scales = np.full(depth, scale, np.float32)
    if profile == "diffusers":
        scales[-1] = 0
    return index, scales


def canny_pixels(pixels: np.ndarray) -> np.ndarray:
    """Return a condition of edges as the reference gives it to the autoencoder.

    Its ControlNet for edges was made with x * 255 * 0.5 + 0.5 of pixels x in [0, 1], where the
    others take 2x - 1.

    Args:
        pixels: (3, H, W) float32 in [-1, 1].
    """
    return (pixels + 1) * np.float32(255 / 4) + np.float32(0.5)


class Control:
    """Give the inputs of a transformer that a ControlNet leads.

    Args:
        calls: run the stage controlnet.
        latent: (1, C, h, w) float32 of the condition, scaled and shifted.
        table: (steps, texts, K) device array of controlnet_conditioning.
        depth: blocks of the transformer.
        scale: what residuals are multiplied with.
        profile: "reference" or "diffusers".
    """

    def __init__(
        self,
        calls: Calls,
        latent: np.ndarray,
        table: Any,
        depth: int,
        scale: float,
        profile: str,
    ) -> None:
        self._calls = calls
        self._condition = calls.to_device("controlnet", to_patches(latent))
        self._table = table
        self._depth = depth
        self._scale = scale
        self._profile = profile

    def __call__(
        self, step: int, patches: Any, positions: Any, texts: Sequence[int]
    ) -> tuple[Any, ...]:
        """Return residuals (layers, B, P, D), index and scale for rows with these texts.

        Args:
            step: which of the table.
            patches: (B, P, patch_dim) device array of noisy latents.
            positions: (P, D) device array.
            texts: of the table, one for each row.
        """
        condition = self._condition[[0] * len(texts)]
        table = self._table[step][list(texts)]
        (residuals,) = self._calls("controlnet", patches, positions, condition, table)
        layers = residuals.shape[0]
        return (residuals, *residual_map(self._depth, layers, self._scale, self._profile))
