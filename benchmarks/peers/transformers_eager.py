"""transformers' Sam2Model, run as its documentation shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Sam2Model
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from benchmarks.assets import Assets
from benchmarks.peers.base import OpenPeer
from benchmarks.peers.transformers_sam2 import read_oracle

__all__ = ["TransformersEager"]


class TransformersEager(OpenPeer[Tensor]):
    """Segment with transformers' model (its default attention is SDPA) in fp32 on the CPU.

    Sam2ImageProcessor needs torchvision. So that the peer does not depend on it, what that class
    runs on the CPU is written out here: an antialiased bilinear resize of the uint8 photo by
    torch's own kernel, a rescale and normalization fused into one, and at the end bilinear
    interpolation to the photo's size and a threshold. A click is scaled without Sam2Processor's
    checks and padding. All of that favours the peer.
    """

    name = "transformers"
    backend = "eager"

    def __init__(self, model: Sam2Model, side: int) -> None:
        self.model = model.eval().requires_grad_(False)
        self.side = side
        self._embed: Callable[[Tensor], list[Tensor]] = model.get_image_embeddings
        self._forward: Callable[..., Any] = model
        self._mean = torch.tensor(IMAGENET_DEFAULT_MEAN).view(3, 1, 1) * 255
        self._std = torch.tensor(IMAGENET_DEFAULT_STD).view(3, 1, 1) * 255

    @classmethod
    def load(cls, assets: Assets, threads: int) -> TransformersEager:
        """Return one with the shared weights; the threads are torch's, of the whole process."""
        torch.set_num_threads(threads)
        return cls(read_oracle(assets.transformers), assets.image_size)

    def from_host(self, array: np.ndarray) -> Tensor:
        """Return the tensor of a host array; it shares its memory."""
        return torch.from_numpy(array)

    @torch.inference_mode()
    def preprocess(self, photo: np.ndarray) -> Tensor:
        """Return pixels (1, 3, side, side) float32 of a photo (H, W, 3) uint8."""
        planes = torch.from_numpy(photo).permute(2, 0, 1)[None]
        side = (self.side, self.side)
        small = F.interpolate(planes, side, mode="bilinear", antialias=True)
        return small.float().sub_(self._mean).div_(self._std)

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

    @torch.inference_mode()
    def postprocess(self, logits: Tensor, size: tuple[int, int]) -> np.ndarray:
        """Return masks (N, H, W) bool at the photo's size of logits (N, h, w)."""
        large = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)
        return (large[0] > 0).numpy()
