"""The multimodal diffusion transformer of Stable Diffusion 3.5 without what steps share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vkrt.models.sd35.config import MmditConfig
from vkrt.models.sd35.embedders import PatchEmbedder
from vkrt.models.sd35.joint_block import JointBlock
from vkrt.models.sd35.layout import mmdit_widths
from vkrt.models.sd35.modulation import modulate, normalize, split_parts

__all__ = ["ControlledDenoiser", "Denoiser"]

# Takes the number of a block and the image (B, P, D) behind it; returns the image to go on with.
Control = Callable[[int, Tensor], Tensor]


class FinalLayer(nn.Module):
    """Map tokens to the velocities of their patches."""

    def __init__(self, config: MmditConfig) -> None:
        super().__init__()
        self.dim = config.dim
        self.channels = config.channels
        self.linear = nn.Linear(config.dim, config.patch_dim)

    def forward(self, x: Tensor, columns: Tensor) -> Tensor:
        """Map (B, P, D), modulated by columns (B, 2 * D), to (B, P, patch_dim)."""
        shift, scale = split_parts(columns, self.dim)
        velocity = self.linear(modulate(normalize(x), shift, scale))
        # The weights give (row, column, channel); latents are taken in as (channel, row, column).
        return velocity.unflatten(-1, (-1, self.channels)).transpose(-1, -2).flatten(-2)


class Denoiser(nn.Module):
    """Tell the velocity of noisy latents; steps and prompts come as a table of modulations."""

    def __init__(self, config: MmditConfig) -> None:
        super().__init__()
        self.widths = mmdit_widths(config)
        self.x_embedder = PatchEmbedder(config.channels, config.patch, config.dim)
        self.joint_blocks = nn.ModuleList(JointBlock(config, i) for i in range(config.depth))
        self.final_layer = FinalLayer(config)

    def forward(
        self, patches: Tensor, positions: Tensor, context: Tensor, table: Tensor
    ) -> tuple[Tensor]:
        """Return the velocity (B, P, patch_dim), in the order of the patches.

        Args:
            patches: (B, P, patch_dim) of noisy latents, in the order (channel, row, column).
            positions: (P, D) from PositionTable.
            context: (B, L, D) from Conditioning.
            table: (B, M) one step of the table from Conditioning.
        """
        return (self.denoise(patches, positions, context, table),)

    def denoise(
        self,
        patches: Tensor,
        positions: Tensor,
        context: Tensor,
        table: Tensor,
        control: Control | None = None,
    ) -> Tensor:
        """Compute forward, with a control of the image behind each block."""
        x = self.x_embedder(patches) + positions
        *columns, last = table.split(self.widths, dim=1)
        for index, block in enumerate(self.joint_blocks):
            x, context = block(x, context, *columns[2 * index : 2 * index + 2])
            if control is not None:
                x = control(index, x)
        return self.final_layer(x, last)


class ControlledDenoiser(nn.Module):
    """Tell the velocity as a denoiser does, led by what a ControlNet made of a condition."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(
        self,
        patches: Tensor,
        positions: Tensor,
        context: Tensor,
        table: Tensor,
        residuals: Tensor,
        index: Tensor,
        scale: Tensor,
    ) -> tuple[Tensor]:
        """Return the velocity; behind block i the image gets scale[i] * residuals[index[i]] added.

        Args:
            patches, positions, context, table: as a denoiser takes them.
            residuals: (layers, B, P, D) from a ControlNet.
            index: (depth,) int64, less than layers.
            scale: (depth,)
        """

        def add(block: int, x: Tensor) -> Tensor:
            chosen = residuals.index_select(0, index[block : block + 1]).squeeze(0)
            return torch.addcmul(x, chosen, scale[block])

        return (self.denoiser.denoise(patches, positions, context, table, add),)
