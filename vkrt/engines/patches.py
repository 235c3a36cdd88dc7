"""Latents as the tokens of the transformer, and back: one order for what goes in and comes out."""

from __future__ import annotations

from typing import Any

__all__ = ["PATCH", "from_patches", "to_patches"]

# Latent pixels along the side of a patch.
PATCH = 2


def to_patches(latent: Any) -> Any:
    """Return the patches of latents, in raster order.

    Args:
        latent: (B, C, h, w) array of any kind, h and w even.

    Returns:
        (B, h/2 * w/2, C * 4); the numbers of a patch are in the order channel, row, column.
    """
    batch, channels, height, width = latent.shape
    rows, columns = height // PATCH, width // PATCH
    split = latent.reshape(batch, channels, rows, PATCH, columns, PATCH)
    # (B, C, R, 2, K, 2) to (B, R, K, C, 2, 2); all kinds of arrays have swapaxes.
    raster = split.swapaxes(1, 2).swapaxes(2, 4).swapaxes(3, 4)
    return raster.reshape(batch, rows * columns, channels * PATCH**2)


def from_patches(patches: Any, height: int, width: int) -> Any:
    """Return the latents (B, C, height, width) of patches, as to_patches gives them."""
    batch, _, numbers = patches.shape
    rows, columns, channels = height // PATCH, width // PATCH, numbers // PATCH**2
    raster = patches.reshape(batch, rows, columns, channels, PATCH, PATCH)
    split = raster.swapaxes(3, 4).swapaxes(2, 4).swapaxes(1, 2)
    return split.reshape(batch, channels, height, width)
