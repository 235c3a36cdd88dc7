"""Pictures as latents, and back: the autoencoder's stages, in tiles where the plan says so."""

from __future__ import annotations

import numpy as np

from vkrt.engines.calls import Calls
from vkrt.engines.start import Posterior, to_vae
from vkrt.engines.tiling import decode_tiled, encode_tiled
from vkrt.models.sd35.config import VaeConfig

__all__ = ["decode_latents", "encode_pixels"]


def encode_pixels(calls: Calls, pixels: np.ndarray, config: VaeConfig) -> Posterior:
    """Return what the autoencoder makes of a picture.

    Args:
        calls: run the stage vae_encoder.
        pixels: (3, H, W) float32 in [-1, 1].
        config: of the autoencoder.
    """
    stride = config.stride

    def encode(part: np.ndarray) -> tuple[np.ndarray, ...]:
        batch, colours, height, width = part.shape
        folded = part.reshape(batch, colours, height // stride, stride, width // stride, stride)
        outputs = calls("vae_encoder", folded)
        return tuple(calls.to_host("vae_encoder", array) for array in outputs)

    tile = calls.plan.tile or max(pixels.shape)
    return Posterior(*encode_tiled(encode, pixels[None], tile, stride=stride))


def decode_latents(calls: Calls, latents: np.ndarray, config: VaeConfig) -> np.ndarray:
    """Return the picture (3, H, W) float32 of one latent, not clamped to [-1, 1].

    Args:
        calls: run the stage vae_decoder.
        latents: (C, h, w) float32 as the transformer has them.
        config: of the autoencoder.
    """
    stride = config.stride

    def decode(part: np.ndarray) -> np.ndarray:
        (folded,) = calls("vae_decoder", part)
        pixels = calls.to_host("vae_decoder", folded)
        batch, colours, height, _, width, _ = pixels.shape
        return pixels.reshape(batch, colours, height * stride, width * stride)

    tile = calls.plan.tile or max(latents.shape)
    return decode_tiled(decode, to_vae(latents[None], config), tile, stride=stride)[0]
