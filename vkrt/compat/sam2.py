"""The public names of SAM 2's own package with their signatures: change one import.

    from vkrt.compat.sam2 import build_sam2, SAM2ImagePredictor
    from vkrt.compat.sam2 import build_sam2_video_predictor, SAM2VideoPredictor

What differs from upstream is named where it does: prompts are checked, results are the same on
every device (hole filling too), and no GPU is needed.
"""

from __future__ import annotations

from typing import Any

from vkrt.compat.builders import build_sam2, build_sam2_hf
from vkrt.compat.handle import Sam2Handle
from vkrt.compat.image_predictor import SAM2ImagePredictor
from vkrt.compat.sam2_video import SAM2VideoPredictor, SAM2VideoPredictorVOS
from vkrt.compat.video_builders import (
    build_sam2_video_predictor,
    build_sam2_video_predictor_hf,
)

__all__ = [
    "SAM2ImagePredictor",
    "SAM2VideoPredictor",
    "SAM2VideoPredictorVOS",
    "Sam2Handle",
    "build_sam2",
    "build_sam2_hf",
    "build_sam2_video_predictor",
    "build_sam2_video_predictor_hf",
]


def __getattr__(name: str) -> Any:
    # Say what there is: code that is ported asks for more.
    later = "; a later version brings the automatic mask generator" if "Automatic" in name else ""
    raise AttributeError(f"vkrt.compat.sam2 has no {name}, only {', '.join(__all__)}{later}")
