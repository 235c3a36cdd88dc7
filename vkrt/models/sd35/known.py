"""The published models of Stable Diffusion 3.5 as plain data: imports no torch."""

from __future__ import annotations

from vkrt.models.sd35.config import MmditConfig, Sd35Config

__all__ = ["ENCODER_FILES", "FILES", "HUB_IDS", "KNOWN"]

_LARGE = MmditConfig(depth=38, heads=38)
_MEDIUM = MmditConfig(depth=24, heads=24, dual_blocks=tuple(range(13)), pos_embed_max_size=384)

# Large and Large Turbo have one shape: where nothing tells them apart, the first one counts.
KNOWN: dict[str, Sd35Config] = {
    "sd3.5-medium": Sd35Config(
        _MEDIUM, steps=50, guidance=5.0, skip_layers=(7, 8, 9), skip_scale=2.5
    ),
    "sd3.5-large": Sd35Config(_LARGE),
    "sd3.5-large-turbo": Sd35Config(_LARGE, steps=4, guidance=1.0, sampler="euler"),
}

HUB_IDS = {name: f"stabilityai/stable-diffusion-{name.removeprefix('sd')}" for name in KNOWN}

FILES = {name: f"{name.replace('-', '_')}.safetensors" for name in KNOWN}

# Where each repository keeps the text encoders, beside the file of the transformer and the VAE.
ENCODER_FILES: dict[str, tuple[str, ...]] = {
    "clip_l": ("text_encoders/clip_l.safetensors",),
    "clip_g": ("text_encoders/clip_g.safetensors",),
    "t5": ("text_encoders/t5xxl_fp16.safetensors", "text_encoders/t5xxl_fp8_e4m3fn.safetensors"),
}
