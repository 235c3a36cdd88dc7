"""A quick look at a latent while it is made, without the autoencoder."""

from __future__ import annotations

import numpy as np
from PIL import Image

__all__ = ["to_preview"]

# How red, green and blue, in [-1, 1], follow from the 16 channels of a latent of Stable Diffusion
# 3 and 3.5, scaled and shifted as the transformer has it: published figures of a least-squares fit.
FACTORS = np.array(
    [
        [-0.0922, -0.0175, 0.0749],
        [0.0311, 0.0633, 0.0954],
        [0.1994, 0.0927, 0.0458],
        [0.0856, 0.0339, 0.0902],
        [0.0587, 0.0272, -0.0496],
        [-0.0006, 0.1104, 0.0309],
        [0.0978, 0.0306, 0.0427],
        [-0.0042, 0.1038, 0.1358],
        [-0.0194, 0.0020, 0.0669],
        [-0.0488, 0.0130, -0.0268],
        [0.0922, 0.0988, 0.0951],
        [-0.0278, 0.0524, -0.0542],
        [0.0332, 0.0456, 0.0895],
        [-0.0069, -0.0030, -0.0810],
        [-0.0596, -0.0465, -0.0293],
        [-0.1448, -0.1463, -0.1189],
    ],
    np.float32,
)
BIAS = np.array([0.2394, 0.2135, 0.1925], np.float32)


def to_preview(latent: np.ndarray) -> Image.Image:
    """Return what a latent looks like, one pixel for each of its own.

    Early in sampling the estimate of the finished latent shows more than the noisy one.

    Args:
        latent: (16, h, w) as the transformer has it; what is not a number comes out black.

    Returns:
        RGB, w x h; all grey for a latent of another number of channels.
    """
    channels, height, width = latent.shape
    if channels != len(FACTORS):
        return Image.new("RGB", (width, height), (128, 128, 128))
    colours = np.tensordot(np.asarray(latent, np.float32), FACTORS, axes=(0, 0)) + BIAS
    shares = np.nan_to_num(colours * 0.5 + 0.5, nan=0.0).clip(0, 1)
    return Image.fromarray((shares * 255).round().astype(np.uint8))
