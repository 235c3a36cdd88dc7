"""Window order: the tokens of a grid listed window by window, the edge's cut windows apart."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

__all__ = ["WindowGroup", "Windows", "join"]


@dataclass(frozen=True)
class WindowGroup:
    """Count windows of one shape that stand side by side.

    Attributes:
        rows, columns: where they lie on the grid.
        height, width: tokens of each window that lie on the grid.
        missing: tokens of each window that would lie beyond its edge.
    """

    rows: slice
    columns: slice
    height: int
    width: int
    missing: int

    @property
    def grid(self) -> tuple[int, int]:
        """Return how many windows stand below one another and side by side."""
        height, width = self.rows.stop - self.rows.start, self.columns.stop - self.columns.start
        return height // self.height, width // self.width

    @property
    def count(self) -> int:
        """Return the number of windows."""
        return self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        """Return the number of tokens in all windows."""
        return self.count * self.height * self.width


@dataclass(frozen=True)
class Windows:
    """Order the tokens of a height x width grid by square windows of a side.

    Whole windows come first, then those that the right edge cuts, the lower edge, and both.
    Tokens beyond the edge are not in the order at all: they would all be the same.
    """

    height: int
    width: int
    side: int

    def groups(self) -> list[WindowGroup]:
        """Return the groups of windows, in the order of their tokens."""
        return [
            WindowGroup(rows, columns, height, width, self.side**2 - height * width)
            for (rows, height), (columns, width) in product(
                spans(self.height, self.side), spans(self.width, self.side)
            )
        ]

    def pooled(self) -> Windows:
        """Return the order after a 2x2 pooling inside the windows."""
        return Windows(self.height // 2, self.width // 2, self.side // 2)

    def from_grid(self, tokens: Tensor) -> Tensor:
        """Bring tokens (B, height, width, C) into this order: (B, height * width, C)."""
        parts = []
        for group in self.groups():
            part = tokens[:, group.rows, group.columns]
            part = part.unflatten(1, (-1, group.height)).unflatten(3, (-1, group.width))
            parts.append(part.transpose(2, 3).flatten(1, 4))
        return join(parts, dim=1)

    def to_grid(self, tokens: Tensor) -> Tensor:
        """Bring tokens (B, height * width, C) from this order to (B, height, width, C)."""
        parts = []
        for group, part in zip(self.groups(), self.split(tokens), strict=True):
            part = part.unflatten(1, (*group.grid, group.height, group.width))
            parts.append(part.transpose(2, 3).flatten(3, 4).flatten(1, 2))
        across = len(spans(self.width, self.side))
        bands = [join(parts[i : i + across], dim=2) for i in range(0, len(parts), across)]
        return join(bands, dim=1)

    def split(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Cut tokens (B, height * width, C) into those of each group."""
        groups = self.groups()
        return (tokens,) if len(groups) == 1 else tokens.split([g.tokens for g in groups], dim=1)

    def pool(self, tokens: Tensor) -> Tensor:
        """Take the maximum over 2x2 tokens: (B, height * width, C) to a quarter of the tokens."""
        parts = []
        for group, part in zip(self.groups(), self.split(tokens), strict=True):
            blocks = part.unflatten(1, (group.count, group.height // 2, 2, group.width // 2, 2))
            parts.append(blocks.amax(dim=(3, 5)).flatten(1, 3))
        return join(parts, dim=1)


def spans(length: int, side: int) -> list[tuple[slice, int]]:
    """Return what windows of a side cover of a length: the whole ones, then the cut one."""
    whole = length - length % side
    found = []
    if whole:
        found.append((slice(0, whole), side))
    if whole < length:
        found.append((slice(whole, length), length - whole))
    return found


def join(parts: list[Tensor], dim: int) -> Tensor:
    """Concatenate the parts; one alone is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)
