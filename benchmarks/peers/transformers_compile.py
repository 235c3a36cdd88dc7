"""transformers' Sam2Model under torch.compile."""

from __future__ import annotations

import torch
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
