"""The ControlNets of Stable Diffusion 3.5 Large: image-only blocks that lead those of the model."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from vkrt.models.sd35.conditioning import condition
from vkrt.models.sd35.config import ControlNetConfig, MmditConfig
from vkrt.models.sd35.embedders import FREQUENCIES, PatchEmbedder
from vkrt.models.sd35.joint_block import Attention, FeedForward, feed_forward
from vkrt.models.sd35.layout import controlnet_widths
from vkrt.models.sd35.modulation import Modulation, join, modulate, normalize, split_parts

__all__ = ["ControlNet", "ControlNetConditioning"]


def two_linears(inputs: int, dim: int) -> nn.Sequential:
    """Return two linear layers under the names that the files of ControlNets have."""
    first, second = nn.Linear(inputs, dim), nn.Linear(dim, dim)
    return nn.Sequential(OrderedDict(linear_1=first, silu=nn.SiLU(), linear_2=second))


class ControlNetConditioning(nn.Module):
    """Turn steps and pooled prompts into the tables that a ControlNet takes."""

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.time_text_embed = nn.ModuleDict(
            {
                "timestep_embedder": two_linears(2 * FREQUENCIES, dim),
                "text_embedder": two_linears(config.pooled_dim, dim),
            }
        )
        self.transformer_blocks = nn.ModuleList(
            Modulation(dim, width) for width in controlnet_widths(config)
        )

    def forward(self, timesteps: Tensor, pooled: Tensor) -> tuple[Tensor]:
        """Return the table (steps, batch, K) of every step and row.

        Args:
            timesteps: (steps,) float32, sigma * 1000.
            pooled: (batch, pooled_dim).
        """
        embed = self.time_text_embed
        parts = embed["timestep_embedder"], embed["text_embedder"]
        activated = condition(timesteps, pooled, *parts)
        return (join(self.transformer_blocks, activated),)


class ImageBlock(nn.Module):
    """Run one block on the image alone, without norms of queries and keys."""

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__()
        self.dim = config.dim
        self.attn = Attention(config.dim, config.head_dim, with_norms=False)
        self.mlp = FeedForward(config.dim, config.mlp_ratio * config.dim)

    def forward(self, x: Tensor, columns: Tensor) -> Tensor:
        """Map (B, P, D), modulated by columns (B, 6 * D), to (B, P, D)."""
        parts = split_parts(columns, self.dim)
        shift, scale, gate = parts[:3]
        read = self.attn.attend(modulate(normalize(x), shift, scale))
        x = torch.addcmul(x, gate, self.attn.proj(read))
        return feed_forward(x, self.mlp, parts[3:])


class ControlNet(nn.Module):
    """Turn noisy latents and a condition into residuals for the blocks of a denoiser.

    Args:
        config: of the ControlNet.
        mmdit: of the denoiser, whose patch embedding is used here too.

    Raises:
        ValueError: they are not of one width.
    """

    def __init__(self, config: ControlNetConfig, mmdit: MmditConfig) -> None:
        super().__init__()
        if config.dim != mmdit.dim:
            raise ValueError(
                f"a ControlNet of width {config.dim} can't lead a model of {mmdit.dim}"
            )
        self.config = config
        self.widths = controlnet_widths(config)
        self.x_embedder = PatchEmbedder(mmdit.channels, mmdit.patch, mmdit.dim)
        self.pos_embed_input = PatchEmbedder(config.channels, config.patch, config.dim)
        self.transformer_blocks = nn.ModuleList(ImageBlock(config) for _ in range(config.depth))
        self.controlnet_blocks = nn.ModuleList(
            nn.Linear(config.dim, config.dim) for _ in range(config.depth)
        )

    def forward(
        self, patches: Tensor, positions: Tensor, condition: Tensor, table: Tensor
    ) -> tuple[Tensor]:
        """Return the residuals (depth, B, P, D).

        Args:
            patches: (B, P, patch_dim) of noisy latents, in the order (channel, row, column).
            positions: (P, D) from the PositionTable of the model that is led.
            condition: (B, P, patch_dim) of the condition's latent.
            table: (B, K) one step of the table from ControlNetConditioning.
        """
        x = self.x_embedder(patches) + positions + self.pos_embed_input(condition)
        residuals = []
        columns = table.split(self.widths, dim=1)
        blocks = zip(self.transformer_blocks, self.controlnet_blocks, columns, strict=True)
        for block, residual, some in blocks:
            x = block(x, some)
            residuals.append(residual(x))
        return (torch.stack(residuals),)
