"""Load the model of a command that segments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vkrt.errors import UnknownModelError

if TYPE_CHECKING:
    from vkrt.engines.sam2_image import Segmenter

__all__ = ["load_segmenter"]


def load_segmenter(model: str, **settings: Any) -> Segmenter:
    """Return a model of SAM 2.

    Args:
        model, settings: as vkrt.load takes them.

    Raises:
        UnknownModelError: it makes pictures.
        VkrtError: as vkrt.load.
    """
    import vkrt

    found: Any = vkrt.load(model, **settings)
    if not hasattr(found, "encode"):
        found.close()
        raise UnknownModelError(
            f"{model} makes pictures and segments none; take a model of SAM 2, which "
            "`vkrt models` lists"
        )
    return found
