"""The set photo of the speed benchmarks, drawn and not stored."""

from __future__ import annotations

import numpy as np
from PIL import Image

from vkrt.demo.scenes import make_scene

__all__ = ["CLICKS", "SIZE", "set_photo"]

SIZE = (1800, 1200)  # width, height
CLICKS = ((900.0, 600.0), (417.0, 283.0), (1333.0, 911.0))
SEED = 11
DRAWN = 600


def set_photo(size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return a photo (height, width, 3) uint8 of a size given as width and height."""
    scene = Image.fromarray(make_scene(SEED, DRAWN).image)
    return np.array(scene.resize(size, Image.Resampling.BICUBIC))
