"""The stages of Stable Diffusion 3.5 and the parts with weights that they run on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vkrt.models.sd35.config import Sd35Config
from vkrt.models.sd35.control_stages import controlnet_conditioning_stage, controlnet_stage
from vkrt.models.sd35.mmdit_stages import (
    conditioning_stage,
    controlled_stage,
    mmdit_stage,
    positions_stage,
)
from vkrt.models.sd35.text_stages import clip_stage, t5_stage
from vkrt.models.sd35.vae_stages import vae_decoder_stage, vae_encoder_stage
from vkrt.stage import Stage

__all__ = ["PARTS", "stage_of"]

# The part whose weights each stage runs on.
PARTS = {
    "clip_l": "clip_l",
    "clip_g": "clip_g",
    "t5": "t5",
    "conditioning": "conditioning",
    "positions": "positions",
    "mmdit": "denoiser",
    "mmdit_controlled": "denoiser",
    "controlnet_conditioning": "controlnet_conditioning",
    "controlnet": "controlnet",
    "vae_encoder": "vae_encoder",
    "vae_decoder": "vae_decoder",
}

# Modules have no common type beyond the one that each of these knows.
BUILDERS: dict[str, Callable[[Any, Sd35Config], Stage]] = {
    "clip_l": lambda module, config: clip_stage("clip_l", module, config.clip_l),
    "clip_g": lambda module, config: clip_stage("clip_g", module, config.clip_g),
    "t5": lambda module, config: t5_stage(module, config.t5),
    "conditioning": lambda module, config: conditioning_stage(module, config.mmdit),
    "positions": lambda module, config: positions_stage(module, config.mmdit),
    "mmdit": lambda module, config: mmdit_stage(module, config.mmdit),
    "mmdit_controlled": lambda module, config: controlled_stage(module, config.mmdit),
    "controlnet_conditioning": lambda module, config: controlnet_conditioning_stage(module),
    "controlnet": lambda module, config: controlnet_stage(module, config.mmdit),
    "vae_encoder": lambda module, config: vae_encoder_stage(module, config.vae),
    "vae_decoder": lambda module, config: vae_decoder_stage(module, config.vae),
}


def stage_of(name: str, module: Any, config: Sd35Config) -> Stage:
    """Return a stage that runs on the module of a part.

    Args:
        name: one of PARTS.
        module: of the part PARTS[name]; a part of several stages may be shared by them.
        config: of the whole model.

    Raises:
        KeyError: there is no such stage.
    """
    return BUILDERS[name](module, config)
