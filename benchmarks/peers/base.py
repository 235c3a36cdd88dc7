"""The interfaces of everything that is measured."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

__all__ = ["OpenPeer", "Peer"]


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


class OpenPeer(Peer, Protocol):
    """Show the steps of a peer that is not vkrt, so that each can be compared.

    What steps hand on are the peer's own arrays; np.asarray gives the host's.

    Attributes:
        side: of the model's square input, in pixels.
    """

    side: int

    def from_host(self, array: np.ndarray) -> Any:
        """Return the peer's array of a host array; its memory may be shared."""
        ...

    def preprocess(self, photo: np.ndarray) -> Any:
        """Return pixels (1, 3, side, side) float32 of a photo (H, W, 3) uint8."""
        ...

    def embed(self, pixels: Any) -> list[Any]:
        """Return feature maps of strides 4, 8 and 16."""
        ...

    def decode(self, features: list[Any], points: Any) -> tuple[Any, Any]:
        """Return logits (3, h, w) and scores (3,) of one click (1, 2) in pixels of the input."""
        ...

    def postprocess(self, logits: Any, size: tuple[int, int]) -> np.ndarray:
        """Return masks (3, H, W) bool at a height and width of logits (3, h, w)."""
        ...

    def scaled(self, size: tuple[int, int], x: float, y: float) -> Any:
        """Return a click (1, 2) on a photo of a height and width, in pixels of the input."""
        ...
