"""Halving and doubling the sides of the autoencoder's features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Downsample", "Upsample", "upsample_plainly"]


def upsample_plainly(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Double the sides by repetition, then convolve: what Upsample must equal.

    Args:
        x: (B, C, h, w)
        weight: (D, C, 3, 3)
        bias: (D,)

    Returns:
        (B, D, 2h, 2w)
    """
    repeated = F.interpolate(x, scale_factor=2.0, mode="nearest")
    return F.conv2d(repeated, weight, bias, padding=1)


class Upsample(nn.Module):
    """Compute upsample_plainly with 4/9 of its multiplications.

    Of three neighbouring rows of the doubled picture two are the same one, so a row of the result
    depends on two rows of x: with weights (a, b, c) row 2i is a x[i-1] + (b + c) x[i], and row
    2i + 1 is (a + b) x[i] + c x[i+1]. Columns are alike. So one 2x2 convolution of x gives, for
    each place between four pixels of x, the four pixels of the result around that place.
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.register_buffer("weight", None, persistent=False)
        self.register_buffer("bias", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        # x: (B, C, h, w) -> (B, C, 2h, 2w)
        weight, bias = self.fold() if self.weight is None else (self.weight, self.bias)
        corners = F.pixel_shuffle(F.conv2d(x, weight, bias, padding=1), 2)
        # Dense again, in the same memory format, so that the larger tensor is freed.
        return corners[:, :, 1:-1, 1:-1].clone()

    def fold(self) -> tuple[Tensor, Tensor]:
        """Return the weights (4C, C, 2, 2) and the bias (4C,) of the one convolution.

        That is a thousandth of the work, so it is not kept: nothing can be out of date.
        """
        kept = self.conv.weight.dtype
        weight = self.conv.weight.to(torch.promote_types(kept, torch.float32))
        # (C, C, 3, 3) -> (C, C, row, 2, 3) -> (C, C, row, 2, column, 2)
        weight = add_neighbours(add_neighbours(weight, 2), 4)
        weight = weight.permute(0, 2, 4, 1, 3, 5).flatten(0, 2).to(kept)
        assert self.conv.bias is not None
        return weight, self.conv.bias.repeat_interleave(4)

    @torch.no_grad()
    def fold_constants(self) -> None:
        """Sum the weights for good; the original ones are dropped."""
        self.weight, self.bias = self.fold()
        del self.conv


def add_neighbours(weight: Tensor, axis: int) -> Tensor:
    """Return the weights of two rows instead of three, given the axis of the three.

    The axis becomes two: the result's row above and below the place, and x's row above and below.
    """
    first, second, third = weight.unbind(axis)
    above = torch.stack((first + second, third), axis)
    below = torch.stack((first, second + third), axis)
    return torch.stack((above, below), axis)


class Downsample(nn.Module):
    """Halve the sides: a convolution at every other pixel, with zeros below and to the right."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        # x: (B, C, 2h, 2w) -> (B, C, h, w)
        return self.conv(F.pad(x, (0, 1, 0, 1)))
