"""What the transformer makes of steps and prompts before any image: done once for all steps."""

from __future__ import annotations

from itertools import chain

import torch.nn.functional as F
from torch import Tensor, nn

from vkrt.models.sd35.config import MmditConfig
from vkrt.models.sd35.embedders import FREQUENCIES, VectorEmbedder, encode_timesteps
from vkrt.models.sd35.layout import mmdit_widths
from vkrt.models.sd35.modulation import Modulation, join

__all__ = ["Conditioning", "condition"]


def condition(
    timesteps: Tensor, pooled: Tensor, for_time: nn.Module, for_text: nn.Module
) -> Tensor:
    """Return silu(time + text), which every modulation is a linear map of.

    Args:
        timesteps: (steps,) float32, 1000 at pure noise.
        pooled: (batch, pooled_dim), whose dtype the embedding of the timesteps takes on.
        for_time: maps their encoding to D.
        for_text: maps pooled text to D.

    Returns:
        (steps, batch, D)
    """
    time = for_time(encode_timesteps(timesteps).to(pooled.dtype))
    return F.silu(time.unsqueeze(1) + for_text(pooled))


class BlockModulation(nn.Module):
    """Modulate the image and the context of one block, which are its children in this order."""

    def __init__(self, dim: int, image: int, context: int) -> None:
        super().__init__()
        self.x_block = Modulation(dim, image)
        self.context_block = Modulation(dim, context)


class Conditioning(nn.Module):
    """Turn steps and prompts into the tables and the context that the denoiser takes."""

    def __init__(self, config: MmditConfig) -> None:
        super().__init__()
        dim = config.dim
        *widths, last = mmdit_widths(config)
        self.t_embedder = VectorEmbedder(2 * FREQUENCIES, dim)
        self.y_embedder = VectorEmbedder(config.pooled_dim, dim)
        self.context_embedder = nn.Linear(config.context_dim, dim)
        self.joint_blocks = nn.ModuleList(
            BlockModulation(dim, image, context)
            for image, context in zip(widths[::2], widths[1::2], strict=True)
        )
        self.final_layer = Modulation(dim, last)

    def forward(self, timesteps: Tensor, pooled: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return the table of every step and row, and the embedded context.

        Args:
            timesteps: (steps,) float32, sigma * 1000.
            pooled: (batch, pooled_dim).
            context: (batch, length, context_dim).

        Returns:
            (steps, batch, M), as vkrt.models.sd35.layout has it, and (batch, length, D).
        """
        activated = condition(timesteps, pooled, self.t_embedder, self.y_embedder)
        blocks = (block.children() for block in self.joint_blocks)
        table = join([*chain.from_iterable(blocks), self.final_layer], activated)
        return table, self.context_embedder(context)
