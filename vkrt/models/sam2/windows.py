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

    @property
    def halvings(self) -> int:
        """Return how often both sides of a window can be halved."""
        sides = self.height, self.width
        return min((side & -side).bit_length() - 1 for side in sides)


@dataclass(frozen=True)
class Windows:
    """Order the tokens of a height x width grid by square windows of a side.

    Whole windows come first, then those that the right edge cuts, the lower edge, and both.
    Tokens beyond the edge are not in the order at all: they would all be the same.

    Within a window come first all tokens at even rows and columns, then those at even rows and
    odd columns, and so on, each quarter again in this order: a 2x2 pooling compares quarters as
    they lie in memory, and leaves such an order behind.
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
            rows, columns = split_sides(group)
            part = tokens[:, group.rows, group.columns].unflatten(2, columns).unflatten(1, rows)
            parts.append(part.permute(window_order(group)).flatten(1, -2))
        return join(parts, dim=1)

    def to_grid(self, tokens: Tensor) -> Tensor:
        """Bring tokens (B, height * width, C) from this order to (B, height, width, C)."""
        parts = []
        for group, part in zip(self.groups(), self.split(tokens), strict=True):
            rows, columns = split_sides(group)
            order, sizes = window_order(group), (*rows, *columns)
            part = part.unflatten(1, [sizes[axis - 1] for axis in order[1:-1]])
            raster = [order.index(axis) for axis in range(len(order))]
            part = part.permute(raster).flatten(1, len(rows)).flatten(2, -2)
            parts.append(part)
        across = len(spans(self.width, self.side))
        bands = [join(parts[i : i + across], dim=2) for i in range(0, len(parts), across)]
        return join(bands, dim=1)

    def split(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Cut tokens (B, height * width, C) into those of each group."""
        groups = self.groups()
        return (tokens,) if len(groups) == 1 else tokens.split([g.tokens for g in groups], dim=1)

    def pool(self, tokens: Tensor) -> Tensor:
        """Take the maximum over 2x2 tokens: (B, height * width, C) to a quarter of the tokens."""
        parts = [
            part.unflatten(1, (group.count, 4, -1)).amax(dim=2).flatten(1, 2)
            for group, part in zip(self.groups(), self.split(tokens), strict=True)
        ]
        return join(parts, dim=1)


def split_sides(group: WindowGroup) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return how rows and columns split: windows, what is left of a side, and its halvings."""
    twos = (2,) * group.halvings
    rows, columns = group.grid
    return (
        (rows, group.height >> group.halvings, *twos),
        (columns, group.width >> group.halvings, *twos),
    )


def window_order(group: WindowGroup) -> list[int]:
    """Return the axes of (B, *split rows, *split columns, C) as they follow in window order."""
    across = 3 + group.halvings
    last = across + 2 + group.halvings
    # The lowest bit of a row or column is the last axis of it.
    quarters = [
        axis for bit in range(group.halvings) for axis in (across - 1 - bit, last - 1 - bit)
    ]
    return [0, 1, across, *quarters, 2, across + 1, last]


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
