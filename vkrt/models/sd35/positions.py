"""The stored position embedding of patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vkrt.models.sd35.config import MmditConfig

__all__ = ["PositionTable"]


class PositionTable(nn.Module):
    """Hold an embedding of every place of the largest picture; smaller ones are cut from it."""

    pos_embed: Tensor

    def __init__(self, config: MmditConfig) -> None:
        super().__init__()
        self.side = config.pos_embed_max_size
        self.register_buffer("pos_embed", torch.zeros(1, self.side**2, config.dim))

    def forward(self, rows: Tensor, columns: Tensor) -> tuple[Tensor]:
        """Return the embeddings (rows, columns, D) of chosen rows and columns, int64 each."""
        places = rows.unsqueeze(1) * self.side + columns
        return (F.embedding(places, self.pos_embed[0]),)
