"""Photos by the list: all are read before any is worked on, and errors say which one is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vkrt.errors import ImageError
from vkrt.media.array_frames import ArrayFrames
from vkrt.media.image import Photo, read_image
from vkrt.media.photo_arrays import is_array, is_nested_numbers, to_host

__all__ = ["read_photos", "split_batch"]

# Decoded photos that are kept until their turn; of more, files are read a second time.
HELD_BYTES = 256 * 1024**2


def split_batch(source: Any) -> tuple[Sequence[Photo], bool]:
    """Return photos, and whether they came as several: a list or an array of four dimensions.

    Nested lists of numbers are as the array that they make.

    Raises:
        ImageError: an array of four dimensions has no channels.
    """
    if is_nested_numbers(source):
        source = to_host(source, "the photo")
    if is_array(source):
        several = getattr(source, "ndim", 0) == 4
        return (ArrayFrames(source, "the batch", ImageError) if several else [source]), several
    several = isinstance(source, list | tuple)
    return (source if several else [source]), several


def read_photos(photos: Sequence[Photo]) -> Iterator[np.ndarray]:
    """Give photos as read_image does, once all of them were read.

    Up to HELD_BYTES of decoded photos are kept; the rest but open files are read again.

    Raises:
        ImageError: as read_image, and which one; this is raised by the call itself.
    """
    held: list[np.ndarray | None] = []
    free = HELD_BYTES
    for index in range(len(photos)):
        photo = read_one(photos, index)
        if photo.nbytes > free and not hasattr(photos[index], "read"):
            held.append(None)
            continue
        held.append(photo)
        free -= 0 if photo is photos[index] else photo.nbytes
    return give(photos, held)


def give(photos: Sequence[Photo], held: list[np.ndarray | None]) -> Iterator[np.ndarray]:
    """Give the photos that are held, and read the others again; none is held once it is given."""
    for index in range(len(held)):
        photo, held[index] = held[index], None
        yield read_one(photos, index) if photo is None else photo


def read_one(photos: Sequence[Photo], index: int) -> np.ndarray:
    """Return one of the photos; an error names it."""
    try:
        return read_image(photos[index])
    except ImageError as error:
        if len(photos) == 1:
            raise
        raise ImageError(f"photo {index + 1} of {len(photos)}: {error}") from None
