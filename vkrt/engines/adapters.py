"""What puts LoRAs on a model's weights, as the engine sees it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Adapters"]


class Adapters(Protocol):
    """Put LoRAs on the weights of a model, and take them off.

    Attributes:
        key: says what is on the text encoders, and how strongly; "" where nothing is.
        named: file and scale of each LoRA that is on.
    """

    key: str
    named: list[dict[str, Any]]

    def add(self, path: Path, scale: float, loaded: Mapping[str, Any]) -> None:
        """Put one on the modules of these stages, and on others once they are loaded.

        Raises:
            CheckpointError: it is damaged or for another model; then nothing was changed.
        """
        ...

    def clear(self, loaded: Mapping[str, Any]) -> None:
        """Take all off the modules of these stages, and put none on others."""
        ...
