"""Load the model of a command that segments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vkrt.errors import UnknownModelError

if TYPE_CHECKING:
    from vkrt.engines.sam2_image import Segmenter

__all__ = ["open_segmenter"]


def open_segmenter(model: str, checkpoint: Path | None = None, **settings: Any) -> Segmenter:
    """Return a model of SAM 2; one that makes pictures is refused before anything is loaded.

    Args:
        model, checkpoint, settings: as vkrt.load takes them.

    Raises:
        UnknownModelError: it makes pictures.
        VkrtError: as vkrt.load.
    """
    import vkrt
    from vkrt.meant import understand

    if understand(model, checkpoint).makes_pictures:
        raise UnknownModelError(
            f"{model} makes pictures and segments none; take a model of SAM 2, which "
            "`vkrt models` lists"
        )
    segmenter: Segmenter = vkrt.load(model, checkpoint=checkpoint, **settings)
    return segmenter
