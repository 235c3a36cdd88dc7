"""vkrt: a compiled inference runtime for SAM 2 and Stable Diffusion 3.5."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vkrt.engines.mask_result import Masks
    from vkrt.engines.prompt import Prompt
    from vkrt.engines.sam2_image import ImageEmbedding, Segmenter
    from vkrt.engines.sam2_track import Track
    from vkrt.engines.sam2_video import Stream
    from vkrt.engines.tracked import TrackedFrame
    from vkrt.errors import (
        BackendError,
        CheckpointError,
        DownloadError,
        ImageError,
        OutputError,
        PromptError,
        UnknownModelError,
        VideoError,
        VkrtError,
    )
    from vkrt.loading import load
    from vkrt.options import forbid_exports

__all__ = [
    "BackendError",
    "CheckpointError",
    "DownloadError",
    "ImageEmbedding",
    "ImageError",
    "Masks",
    "OutputError",
    "Prompt",
    "PromptError",
    "Segmenter",
    "Stream",
    "Track",
    "TrackedFrame",
    "UnknownModelError",
    "VideoError",
    "VkrtError",
    "forbid_exports",
    "load",
]
__version__ = "0.1.0"

_HOMES = {
    "forbid_exports": "vkrt.options",
    "load": "vkrt.loading",
    "ImageEmbedding": "vkrt.engines.sam2_image",
    "Masks": "vkrt.engines.mask_result",
    "Prompt": "vkrt.engines.prompt",
    "Segmenter": "vkrt.engines.sam2_image",
    "Stream": "vkrt.engines.sam2_video",
    "Track": "vkrt.engines.sam2_track",
    "TrackedFrame": "vkrt.engines.tracked",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that `import vkrt` costs nothing that its caller does not use.
    if name not in __all__:
        raise AttributeError(f"module 'vkrt' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "vkrt.errors")), name)
