"""What is measured: the interface of everything, and the steps of what is not vkrt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

__all__ = ["Encoded", "OpenPeer", "Peer"]

Array = TypeVar("Array")


class Peer(Protocol):
    """Segment one photo: everything that a user's own code would run, nothing less.

    Each class has a `load(assets, threads)` that returns one with the shared weights
    (benchmarks.assets) and that many CPU threads.

    Attributes:
        name: how tables and results.csv call it.
        backend: what runs the model, such as "eager".
        precision: "fp32" or "int8".
    """

    name: str
    backend: str
    precision: str

    def encode(self, photo: np.ndarray) -> Any:
        """Return the embedding of a photo (H, W, 3) uint8, resizing and normalizing included."""
        ...

    def click(self, embedding: Any, x: float, y: float) -> tuple[np.ndarray, np.ndarray]:
        """Return masks (3, H, W) bool at the photo's size and scores (3,) of a click, in pixels."""
        ...


@dataclass(frozen=True)
class Encoded(Generic[Array]):
    """Hold feature maps of strides 4, 8 and 16, and the photo's height and width."""

    features: list[Array]
    size: tuple[int, int]


class OpenPeer(ABC, Generic[Array]):
    """Segment in steps, so that each can be compared: a Peer that is not vkrt.

    What steps hand on are the peer's own arrays; np.asarray gives the host's.

    Attributes:
        name, backend, precision: as of a Peer.
        side: of the model's square input, in pixels.
    """

    name: str
    backend: str
    precision = "fp32"
    side: int

    @abstractmethod
    def from_host(self, array: np.ndarray) -> Array:
        """Return the peer's array of a host array; its memory may be shared."""

    @abstractmethod
    def preprocess(self, photo: np.ndarray) -> Array:
        """Return pixels (1, 3, side, side) float32 of a photo (H, W, 3) uint8."""

    @abstractmethod
    def embed(self, pixels: Array) -> list[Array]:
        """Return feature maps of strides 4, 8 and 16."""

    @abstractmethod
    def decode(self, features: list[Array], points: Array) -> tuple[Array, Array]:
        """Return logits (3, h, w) and scores (3,) of one click (1, 2) in pixels of the input."""

    @abstractmethod
    def postprocess(self, logits: Array, size: tuple[int, int]) -> np.ndarray:
        """Return masks (3, H, W) bool at a height and width of logits (3, h, w)."""

    def scaled(self, size: tuple[int, int], x: float, y: float) -> Array:
        """Return a click (1, 2) on a photo of a height and width, in pixels of the input."""
        point = [x * self.side / size[1], y * self.side / size[0]]
        return self.from_host(np.array([point], np.float32))

    def encode(self, photo: np.ndarray) -> Encoded[Array]:
        """Return the embedding of a photo (H, W, 3) uint8."""
        height, width = photo.shape[:2]
        return Encoded(self.embed(self.preprocess(photo)), (height, width))

    def click(self, embedding: Encoded[Array], x: float, y: float) -> tuple[np.ndarray, np.ndarray]:
        """Return masks (3, H, W) bool and scores (3,) of a click, in pixels of the photo."""
        points = self.scaled(embedding.size, x, y)
        logits, scores = self.decode(embedding.features, points)
        return self.postprocess(logits, embedding.size), np.asarray(scores)
