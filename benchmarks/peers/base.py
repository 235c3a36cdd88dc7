"""The interface of everything that is measured."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

__all__ = ["Peer"]


class Peer(Protocol):
    """Segment one photo: everything that a user's own code would run, nothing less.

    Attributes:
        name: how tables and results.csv call it.
        backend: what runs the model, such as "eager".
    """

    name: str
    backend: str

    def encode(self, photo: np.ndarray) -> Any:
        """Return the embedding of a photo (H, W, 3) uint8, resizing and normalizing included."""
        ...

    def click(self, embedding: Any, x: float, y: float) -> tuple[np.ndarray, np.ndarray]:
        """Return masks (3, H, W) bool at the photo's size and scores (3,) of a click, in pixels."""
        ...
