"""Block order: the pixels of one coarse cell together, as 2x2 expansions make them."""

from __future__ import annotations

from torch import Tensor

__all__ = ["from_blocks", "in_blocks"]

# A G x G grid of cells, each halved in both directions until single: pixel (y, x) of a map of
# side F * G stands at (cell row, cell column, y half, x half, finer y half, finer x half, ...).


def in_blocks(features: Tensor, grid: int) -> Tensor:
    """Bring features (B, F * G, F * G, C), F = 2, 4, 8 and so on, to (B, G * G, F * F, C)."""
    halvings = (features.shape[1] // grid).bit_length() - 1
    shape = (grid, *[2] * halvings)
    nested = features.unflatten(2, shape).unflatten(1, shape)
    rows = range(1, 2 + halvings)
    order = [axis for row in rows for axis in (row, row + len(shape))]
    return nested.permute(0, *order, -1).flatten(3, -2).flatten(1, 2)


def from_blocks(blocks: Tensor, grid: int) -> Tensor:
    """Bring channels (B, C, G * G * F * F) in block order to maps (B, C, F * G, F * G)."""
    halvings = ((blocks.shape[-1] // grid**2).bit_length() - 1) // 2
    # One halving of the rows after the other: runtimes are slow at moving many axes at once.
    raster = blocks
    for halving in range(halvings):
        columns, finer = grid << halving, 4 ** (halvings - halving) // 2
        raster = raster.reshape(-1, columns, 2, finer).transpose(1, 2)
    side = grid << halvings
    return raster.reshape(-1, blocks.shape[1], side, side)
