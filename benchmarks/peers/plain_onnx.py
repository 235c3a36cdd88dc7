"""A plain ONNX export of transformers' Sam2Model, whatever runs its graphs. Imports no torch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from benchmarks.assets import Assets
from benchmarks.peers.base import OpenPeer

__all__ = ["Graph", "PlainOnnx"]

# Takes the graph's inputs in order, gives its outputs in order.
Graph: TypeAlias = Callable[[Sequence[np.ndarray]], list[np.ndarray]]

MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(3, 1, 1) * 255
STD = np.array([0.229, 0.224, 0.225], np.float32).reshape(3, 1, 1) * 255


class PlainOnnx(OpenPeer[np.ndarray]):
    """Segment with the three graphs of a plain export (benchmarks.peers.plain_export) on the CPU.

    The photo is resized by Pillow, which transformers' own image processor matches to a level of
    uint8. Logits become masks in a graph of their own, at one size of photo, and the decoder takes
    exactly one click: constant shapes throughout, which favours the peer.
    """

    def __init__(self, assets: Assets, threads: int) -> None:
        self.side = assets.image_size
        width, height = assets.photo_size
        self._size = (height, width)
        self._encoder = self.open_graph(assets.encoder(self.precision), threads)
        self._decoder = self.open_graph(assets.decoder(self.precision), threads)
        self._masks = self.open_graph(assets.masks, threads)

    @classmethod
    def load(cls, assets: Assets, threads: int) -> PlainOnnx:
        """Return one with the shared weights."""
        return cls(assets, threads)

    @staticmethod
    @abstractmethod
    def open_graph(path: Path, threads: int) -> Graph:
        """Return what runs a graph on that many CPU threads."""

    def from_host(self, array: np.ndarray) -> np.ndarray:
        """Return the array itself."""
        return array

    def preprocess(self, photo: np.ndarray) -> np.ndarray:
        """Return pixels (1, 3, side, side) float32 of a photo (H, W, 3) uint8."""
        small = Image.fromarray(photo).resize((self.side, self.side), Image.Resampling.BILINEAR)
        planes = np.asarray(small).transpose(2, 0, 1).astype(np.float32, order="C")
        planes -= MEAN
        planes /= STD
        return planes[None]

    def embed(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Return feature maps of strides 4, 8 and 16."""
        return self._encoder([pixels])

    def decode(
        self, features: list[np.ndarray], points: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return logits (3, h, w) and scores (3,) of one click (1, 2) in pixels of the input."""
        logits, scores = self._decoder([*features, points[None, None]])
        return logits, scores

    def postprocess(self, logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Return masks (3, H, W) bool at the photo's size of logits (3, h, w).

        Raises:
            ValueError: the photo is of another height and width than the graph was made for.
        """
        if size != self._size:
            raise ValueError(f"the graph is for photos of {self._size}, not {size}")
        return self._masks([logits])[0]
