"""The pictures on which an int8 export sees the ranges of its activations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vkrt.demo.scenes import make_scene
from vkrt.errors import ImageError
from vkrt.media.image import read_image, to_input

__all__ = ["SCENES", "TRIALS", "find_photos", "photo_inputs", "scene_inputs"]

# Seeds of scenes for the ranges, and of others that tell what a range does to a new picture.
# Neither the training of the demo model nor its benchmarks use any of them.
SCENES = range(900_000, 900_012)
TRIALS = range(900_100, 900_102)
MOST_SCENE_SIDE = 512
MOST_PHOTOS = 24
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def find_photos(folder: Path) -> list[Path]:
    """Return the photos of a folder: at most 24 of them, spread over the sorted names.

    Raises:
        ImageError: there is no such folder, no photo in it, or one of them can't be read.
    """
    try:
        every = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise ImageError(
            f"{folder} can't be read ({error.strerror}); give a folder of photos to calibrate on"
        ) from None
    if not every:
        raise ImageError(
            f"{folder} has no photo ({' '.join(SUFFIXES)}) to calibrate on; give a folder with some"
        )
    count = min(len(every), MOST_PHOTOS)
    chosen = [every[index * len(every) // count] for index in range(count)]
    for photo in chosen:
        read_image(photo)
    return chosen


def photo_inputs(photos: Sequence[Path], side: int) -> Iterator[np.ndarray]:
    """Give photos as inputs (1, 3, side, side) of an encoder."""
    for photo in photos:
        yield to_input(read_image(photo), side)[None]


def scene_inputs(seeds: range, side: int) -> Iterator[np.ndarray]:
    """Give the procedural scenes of seeds as inputs (1, 3, side, side) of an encoder."""
    for seed in seeds:
        yield to_input(make_scene(seed, min(side, MOST_SCENE_SIDE)).image, side)[None]
