"""The prompt encoder of SAM 2: points, box corners and masks become embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vkrt.models.sam2.layers import LayerNorm2d

__all__ = ["PAD", "PromptEncoder"]

# Point labels: -1 pad, 0 background, 1 foreground, 2 and 3 the corners of a box.
PAD = -1
NUM_POINT_KINDS = 4
MASK_CHANNELS = 16


class RandomPositionEncoding(nn.Module):
    """Encode positions with random Fourier features (https://arxiv.org/abs/2006.10739)."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, num_features))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        # model.to(bfloat16) would move every place by pixels: only the device may change.
        exact = self.positional_encoding_gaussian_matrix
        super()._apply(fn, recurse)
        moved = self.positional_encoding_gaussian_matrix
        if moved.dtype != exact.dtype:
            self.positional_encoding_gaussian_matrix = exact.to(moved.device)
        return self

    def forward(self, positions: Tensor) -> Tensor:
        """Return (..., 2 * num_features) for positions (..., 2) as x, y in [0, 1]."""
        x, y = (2 * positions - 1).unsqueeze(-1).unbind(-2)
        along_x, along_y = self.positional_encoding_gaussian_matrix
        # Not a matmul: autocast would round the phase to 8 bits.
        phase = 2 * math.pi * (x * along_x + y * along_y)
        return torch.cat((phase.sin(), phase.cos()), dim=-1)

    def grid(self, size: int) -> Tensor:
        """Return the encoding (1, size * size, 2 * num_features) of the centres of a grid."""
        matrix = self.positional_encoding_gaussian_matrix
        centres = (torch.arange(size, device=matrix.device, dtype=matrix.dtype) + 0.5) / size
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        return self(torch.stack((x, y), dim=-1)).flatten(0, 1).unsqueeze(0)


class PromptEncoder(nn.Module):
    """Embed prompts for the mask decoder."""

    def __init__(self, hidden_dim: int, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.pe_layer = RandomPositionEncoding(hidden_dim // 2)
        self.point_embeddings = nn.ModuleList(
            nn.Embedding(1, hidden_dim) for _ in range(NUM_POINT_KINDS)
        )
        self.not_a_point_embed = nn.Embedding(1, hidden_dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, MASK_CHANNELS // 4, kernel_size=2, stride=2),
            LayerNorm2d(MASK_CHANNELS // 4),
            nn.GELU(),
            nn.Conv2d(MASK_CHANNELS // 4, MASK_CHANNELS, kernel_size=2, stride=2),
            LayerNorm2d(MASK_CHANNELS),
            nn.GELU(),
            nn.Conv2d(MASK_CHANNELS, hidden_dim, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, hidden_dim)

    def kinds(self) -> list[nn.Module]:
        """Return the embeddings of the labels -1 to 3, in that order."""
        return [self.not_a_point_embed, *self.point_embeddings]

    def embed_points(self, points: Tensor, labels: Tensor) -> Tensor:
        """Embed points.

        Args:
            points: (N, P, 2) x, y in pixels of the model's input.
            labels: (N, P) integers: -1 pad, 0 background, 1 foreground, 2 and 3 box corners.

        Returns:
            (N, P, hidden_dim)
        """
        position = self.pe_layer((points + 0.5) / self.image_size)
        kinds = torch.cat([next(e.parameters()) for e in self.kinds()])
        is_point = (labels != PAD).unsqueeze(-1)
        return (position * is_point).to(kinds.dtype) + kinds[labels.long() + 1]

    def embed_masks(self, masks: Tensor) -> Tensor:
        """Embed mask logits (N, 1, S/4, S/4) as (N, L, hidden_dim) for the L pixels of stride 16.

        Where there is no mask, no_mask_embed (1, hidden_dim) stands for every pixel.
        """
        embedded: Tensor = self.mask_downscaling(masks)
        return embedded.flatten(2).transpose(1, 2)
