"""transformers' Sam2Model under torch.compile."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Sam2Model

from benchmarks.peers.transformers_eager import TransformersEager

__all__ = ["TransformersCompile"]


class TransformersCompile(TransformersEager):
    """Segment as TransformersEager, the model's two calls compiled for their exact shapes."""

    name = "transformers-compile"
    backend = "torch.compile"

    def __init__(self, model: Sam2Model, side: int) -> None:
        super().__init__(model, side)
        self._embed = torch.compile(model.get_image_embeddings, dynamic=False)
        self._forward = torch.compile(model.forward, dynamic=False)

    @torch.inference_mode()
    def embed(self, pixels: Tensor) -> list[Tensor]:
        """Return feature maps of strides 4, 8 and 16."""
        return self._embed(pixels)

    @torch.inference_mode()
    def decode(self, features: list[Tensor], points: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (3, h, w) and scores (3,) of clicks (P, 2) in pixels of the input."""
        labels = torch.ones(1, 1, len(points), dtype=torch.int64)
        out = self._forward(
            image_embeddings=list(features), input_points=points[None, None], input_labels=labels
        )
        return out.pred_masks[0, 0], out.iou_scores[0, 0]
