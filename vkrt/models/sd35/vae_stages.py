"""The stages of the autoencoder: vae_encoder and vae_decoder."""

from __future__ import annotations

from typing import Any

from vkrt.models.sd35.config import VaeConfig
from vkrt.stage import Port, Stage

__all__ = ["vae_decoder_stage", "vae_encoder_stage"]


def vae_encoder_stage(module: Any, config: VaeConfig) -> Stage:
    """Return the stage of a VaeEncoder: pixels in [-1, 1] to mean and std of their latent.

    "height" and "width" count latent pixels.
    """
    latent = ("batch", config.latent_channels, "height", "width")
    return Stage(
        "vae_encoder",
        module,
        (Port("pixels", pixel_shape(config), bounds=(-1, 1)),),
        (Port("mean", latent), Port("std", latent)),
    )


def vae_decoder_stage(module: Any, config: VaeConfig) -> Stage:
    """Return the stage of a VaeDecoder: latents, neither scaled nor shifted, to pixels."""
    latent = ("batch", config.latent_channels, "height", "width")
    return Stage(
        "vae_decoder", module, (Port("latent", latent),), (Port("pixels", pixel_shape(config)),)
    )


def pixel_shape(config: VaeConfig) -> tuple[int | str, ...]:
    """Return the shape of pictures whose sides are folded, as symbols may only be whole sizes."""
    return ("batch", 3, "height", config.stride, "width", config.stride)
