"""Upstream's builders of video predictors."""

from __future__ import annotations

import os
from typing import Any

from vkrt.compat.builders import build_video, build_video_hf
from vkrt.compat.sam2_video import SAM2VideoPredictor, SAM2VideoPredictorVOS

__all__ = ["build_sam2_video_predictor", "build_sam2_video_predictor_hf"]


def build_sam2_video_predictor(
    config_file: str | os.PathLike[str],
    ckpt_path: str | os.PathLike[str] | None = None,
    device: Any = "auto",
    mode: str = "eval",
    hydra_overrides_extra: list[str] | None = None,
    apply_postprocessing: bool = True,
    vos_optimized: bool = False,
    **kwargs: Any,
) -> SAM2VideoPredictor:
    """Build a video predictor from upstream's config path and a checkpoint.

    Args:
        config_file, ckpt_path, device, mode: as in vkrt.compat.sam2.build_sam2.
        hydra_overrides_extra: of upstream's overrides those of image_size,
            max_cond_frames_in_attn and the options of SAM2VideoPredictor.
        apply_postprocessing: where a single mask is unstable, take the best of three; remember
            prompted frames as the masks that are shown and not as logits; fill holes of up to 8
            low-resolution pixels.
        vos_optimized: gives a SAM2VideoPredictorVOS, which does the same: the backend decides what
            is compiled.
        kwargs: options of vkrt.load (backend, precision, threads).

    Raises:
        VkrtError: as vkrt.load, or an override that vkrt does not know.
        ValueError: mode is not "eval".
    """
    return build_video(
        SAM2VideoPredictorVOS if vos_optimized else SAM2VideoPredictor,
        config_file,
        ckpt_path,
        device,
        mode,
        hydra_overrides_extra,
        apply_postprocessing,
        **kwargs,
    )


def build_sam2_video_predictor_hf(model_id: str, **kwargs: Any) -> SAM2VideoPredictor:
    """Build the predictor of a hub id such as "facebook/sam2.1-hiera-tiny", fetching its weights.

    Raises:
        VkrtError: as build_sam2_video_predictor; DownloadError where the hub can't be reached.
    """
    return build_video_hf(SAM2VideoPredictor, model_id, **kwargs)
