"""Upstream's builders: a config path, a checkpoint and hydra overrides become a model."""

from __future__ import annotations

import os
from typing import Any, TypeVar

from vkrt import catalog
from vkrt.arguments import shown
from vkrt.compat.errors import UnfitWeightsError, raising
from vkrt.compat.handle import Sam2Handle
from vkrt.compat.overrides import VIDEO, read_overrides
from vkrt.engines.sam2_image import Segmenter
from vkrt.errors import BackendError
from vkrt.loading import load

__all__ = ["build_sam2", "build_sam2_hf", "build_video", "build_video_hf"]

Handle = TypeVar("Handle", bound=Sam2Handle)

# Upstream's builder fills holes up to this, in low-resolution pixels.
FILL_HOLE_AREA = 8


def build_sam2(
    config_file: str | os.PathLike[str],
    ckpt_path: str | os.PathLike[str] | None = None,
    device: Any = "auto",
    mode: str = "eval",
    hydra_overrides_extra: list[str] | None = None,
    apply_postprocessing: bool = True,
    **kwargs: Any,
) -> Sam2Handle:
    """Build a model from upstream's config path and a checkpoint.

    Args:
        config_file: such as "configs/sam2.1/sam2.1_hiera_t.yaml"; any catalog name does too.
        ckpt_path: the checkpoint; None takes what `vkrt pull` fetched.
        device: as for torch; "auto" is the first GPU, else the CPU. (Upstream's default is
            "cuda", which fails where there is none.)
        mode: "eval"; vkrt does not train through this call.
        hydra_overrides_extra: of upstream's overrides those of image_size and
            dynamic_multimask_via_stability.
        apply_postprocessing: choose the best of three where a single mask is unstable.
        kwargs: options of vkrt.load (backend, precision, threads).

    Raises:
        VkrtError: as vkrt.load, or an override that vkrt does not know.
        ValueError: mode is not "eval".
    """
    overrides = read_overrides(hydra_overrides_extra or [])
    image_size = overrides.pop("image_size", None)
    segmenter = load_segmenter(config_file, ckpt_path, device, mode, image_size, **kwargs)
    dynamic = overrides.get("dynamic_multimask_via_stability", apply_postprocessing)
    return Sam2Handle(segmenter, bool(dynamic))


def build_sam2_hf(model_id: str, **kwargs: Any) -> Sam2Handle:
    """Build the model of a hub id such as "facebook/sam2.1-hiera-tiny", fetching its weights.

    Raises:
        VkrtError: as build_sam2; DownloadError where the hub can't be reached.
    """
    from vkrt.weights.hub import pull

    model = catalog.find(model_id)
    return build_sam2(model.name, pull(model), **kwargs)


def build_video(
    kind: type[Handle],
    config_file: str | os.PathLike[str],
    ckpt_path: str | os.PathLike[str] | None = None,
    device: Any = "auto",
    mode: str = "eval",
    hydra_overrides_extra: list[str] | None = None,
    apply_postprocessing: bool = True,
    **kwargs: Any,
) -> Handle:
    """Build a video predictor of a kind; see build_sam2_video_predictor."""
    overrides = read_overrides(hydra_overrides_extra or [], VIDEO)
    image_size = overrides.pop("image_size", None)
    segmenter = load_segmenter(config_file, ckpt_path, device, mode, image_size, **kwargs)
    options = {
        "dynamic_multimask_via_stability": apply_postprocessing,
        "binarize_mask_from_pts_for_mem_enc": apply_postprocessing,
        "fill_hole_area": FILL_HOLE_AREA if apply_postprocessing else 0,
        **overrides,
    }
    return kind(segmenter, **options)


def build_video_hf(kind: type[Handle], model_id: str, **kwargs: Any) -> Handle:
    """Build a video predictor of a kind from a hub id; see build_sam2_video_predictor_hf."""
    from vkrt.weights.hub import pull

    model = catalog.find(model_id)
    return build_video(kind, model.name, pull(model), **kwargs)


def load_segmenter(
    config_file: str | os.PathLike[str],
    ckpt_path: str | os.PathLike[str] | None,
    device: Any,
    mode: str,
    image_size: int | None,
    **kwargs: Any,
) -> Segmenter:
    """Return the vkrt model that the arguments of upstream's builders name.

    Raises:
        VkrtError: as vkrt.load.
        ValueError: mode is not "eval".
    """
    if mode != "eval":
        raise ValueError(f'mode must be "eval", not {shown(mode)}: vkrt only infers')
    if not isinstance(device, str) and type(device).__module__ != "torch":
        raise BackendError(f"device must be that of torch, or its name, not {shown(device)}")
    with raising(UnfitWeightsError):
        return load(config_file, ckpt_path, device=str(device), image_size=image_size, **kwargs)
