"""The set photo of the speed benchmarks, drawn and not stored, and the clicks on it."""

from __future__ import annotations

import numpy as np
from PIL import Image

from vkrt.demo.scenes import make_scene

__all__ = ["SIZE", "clicks_on", "set_photo"]

SIZE = (1800, 1200)  # width, height
SEED = 11
DRAWN = 600
# The plastic number's powers: multiples of them, modulo 1, cover the square evenly.
STEPS = np.array([0.7548776662466927, 0.5698402909980532])


def set_photo(size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return a photo (height, width, 3) uint8 of a size given as width and height."""
    scene = Image.fromarray(make_scene(SEED, DRAWN).image)
    return np.array(scene.resize(size, Image.Resampling.BICUBIC))


def clicks_on(photo: np.ndarray, count: int) -> list[tuple[float, float]]:
    """Return different points x, y spread over a photo (H, W, 3), always the same ones."""
    height, width = photo.shape[:2]
    shares = (0.5 + np.arange(count)[:, None] * STEPS) % 1
    return [(float(x * width), float(y * height)) for x, y in shares]
