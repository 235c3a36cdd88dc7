"""vkrt itself, through the calls of its public interface. Imports no peer."""

from __future__ import annotations

import numpy as np
import torch

from vkrt import backends, catalog
from vkrt.engines.sam2_image import ImageEmbedding, Segmenter
from vkrt.models.sam2.model import Sam2
from vkrt.models.sam2.stages import image_stages
from vkrt.options import Options

__all__ = ["Ours"]


class Ours:
    """Segment with vkrt in fp32 on the CPU, without an embedding cache.

    Attributes:
        stages: the stages that run, for counting their arithmetic.
        segmenter: the engine.
    """

    name = "vkrt"

    def __init__(self, model: catalog.Model, module: Sam2, backend: str = "eager") -> None:
        options = Options(backend=backend, device="cpu", precision="fp32")
        # The pre- and post-processing gets no more threads than torch, or than the peers have.
        threads = torch.get_num_threads()
        self.stages = image_stages(module.eval().requires_grad_(False))
        # The cache would turn every encode after the first into a lookup.
        self.segmenter = Segmenter(
            name=model.name,
            config=model.config,
            stages=self.stages,
            backend=backends.create(options),
            embedding_cache_bytes=0,
            threads=threads,
        )
        self.backend = self.segmenter.backend

    def encode(self, photo: np.ndarray) -> ImageEmbedding:
        """Return the embedding of a photo (H, W, 3) uint8."""
        return self.segmenter.encode(photo)

    def click(self, embedding: ImageEmbedding, x: float, y: float) -> tuple[np.ndarray, np.ndarray]:
        """Return masks (3, H, W) bool and scores (3,) of a click, in pixels of the photo."""
        answer = embedding.predict(points=[[x, y]], labels=[1])
        return answer.masks, answer.scores
