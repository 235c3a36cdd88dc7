"""All stages that a model has: those of pictures, and those of clips where it has memory."""

from __future__ import annotations

from vkrt.models.sam2.model import Sam2
from vkrt.models.sam2.stages import image_stages
from vkrt.models.sam2.video_stages import video_stages
from vkrt.stage import Stage

__all__ = ["all_stages"]


def all_stages(model: Sam2) -> dict[str, Stage]:
    """Return the stages by name; weights of an image model have none that track."""
    return {**image_stages(model), **(video_stages(model) if model.has_memory else {})}
