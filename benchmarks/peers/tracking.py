"""What tracks in the benchmarks: vkrt's stream, and transformers' Sam2VideoModel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Sam2VideoModel
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from vkrt import Prompt, Segmenter

__all__ = ["OursTracking", "TrackingPeer", "TransformersTracking"]

Clicks = Sequence[tuple[float, float]]


class TrackingPeer(Protocol):
    """Track objects through frames that come one by one: all that a user's own code would run.

    Attributes:
        name: how tables and results.csv call it.
        backend: what runs the model, such as "eager".
        precision: "fp32" or "int8".
    """

    name: str
    backend: str
    precision: str

    def begin(self, frame: np.ndarray, clicks: Clicks) -> np.ndarray:
        """Begin anew with a click (x, y) an object, and return masks (N, H, W) bool."""
        ...

    def step(self, frame: np.ndarray) -> np.ndarray:
        """Return the masks (N, H, W) bool of the next frame (H, W, 3) uint8."""
        ...


class OursTracking:
    """Track with vkrt's stream, on whatever backend the model was loaded on."""

    def __init__(self, segmenter: Segmenter, name: str, precision: str = "fp32") -> None:
        self.name, self.backend, self.precision = name, segmenter.backend, precision
        self._stream = segmenter.stream()

    def begin(self, frame: np.ndarray, clicks: Clicks) -> np.ndarray:
        """Begin anew with a click (x, y) an object, and return masks (N, H, W) bool."""
        self._stream.reset()
        prompts = [Prompt(obj, points=[click]) for obj, click in enumerate(clicks)]
        return self._stream.step(frame, prompts).masks

    def step(self, frame: np.ndarray) -> np.ndarray:
        """Return the masks (N, H, W) bool of the next frame (H, W, 3) uint8."""
        return self._stream.step(frame).masks


class TransformersTracking:
    """Track with transformers' model in fp32 on the CPU, streaming, as its documentation shows.

    Its processors need torchvision; what they run is written out here (see TransformersEager). The
    frames that its session keeps are let go of, as they would be no part of a long comparison.
    """

    name = "transformers"
    backend = "eager"
    precision = "fp32"

    def __init__(self, model: Sam2VideoModel, side: int) -> None:
        self._model = model.eval().requires_grad_(False)
        self._side = side
        self._mean = torch.tensor(IMAGENET_DEFAULT_MEAN).view(3, 1, 1) * 255
        self._std = torch.tensor(IMAGENET_DEFAULT_STD).view(3, 1, 1) * 255
        self._session = Sam2VideoInferenceSession(dtype=torch.float32)

    @torch.inference_mode()
    def begin(self, frame: np.ndarray, clicks: Clicks) -> np.ndarray:
        """Begin anew with a click (x, y) an object, and return masks (N, H, W) bool."""
        self._session = Sam2VideoInferenceSession(dtype=torch.float32)
        height, width = frame.shape[:2]
        for obj, (x, y) in enumerate(clicks):
            point = torch.tensor([x * self._side / width, y * self._side / height])
            said = {
                "point_coords": point.view(1, 1, 1, 2),
                "point_labels": torch.ones(1, 1, 1, dtype=torch.int32),
            }
            self._session.add_point_inputs(self._session.obj_id_to_idx(obj), 0, said)
        self._session.obj_with_new_inputs = list(range(len(clicks)))
        return self.step(frame)

    @torch.inference_mode()
    def step(self, frame: np.ndarray) -> np.ndarray:
        """Return the masks (N, H, W) bool of the next frame (H, W, 3) uint8."""
        out = self._model(self._session, frame=self._preprocess(frame))
        if self._session.processed_frames is not None:
            self._session.processed_frames[out.frame_idx] = torch.empty(0)
        size = frame.shape[0], frame.shape[1]
        large = F.interpolate(out.pred_masks, size, mode="bilinear", align_corners=False)
        return (large[:, 0] > 0).numpy()

    def _preprocess(self, frame: np.ndarray) -> Tensor:
        """Return pixels (1, 3, side, side) float32 of a frame (H, W, 3) uint8."""
        planes = torch.from_numpy(frame).permute(2, 0, 1)[None]
        side = (self._side, self._side)
        small = F.interpolate(planes, side, mode="bilinear", antialias=True)
        return small.float().sub_(self._mean).div_(self._std)
