"""Frames that are there as pictures: folders, arrays, lists, and iterators of any kind."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from vkrt.errors import ImageError, VideoError
from vkrt.media.frames import CACHE, Damage, Frames, OnError
from vkrt.media.image import Filter, Photo, from_array, read_image, to_input
from vkrt.media.photo_arrays import FloatScale, is_array, is_nested_numbers, is_tensor, to_host

__all__ = ["IteratorFrames", "SequenceFrames", "list_pictures", "natural_key"]

PICTURES = {
    ".avif",
    ".bmp",
    ".gif",
    ".heic",
    ".heif",
    ".jpeg",
    ".jpg",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
}
# A minus that has nothing to join is a sign.
NUMBER = re.compile(r"((?:(?<![^\W_])-)?[0-9]+)")


class SequenceFrames(Frames):
    """Read frames from photos that can be taken in any order.

    Args:
        photos: paths, an array of frames, or whatever else gives photos by number. Arrays are
            not copied.
        upright: turn each photo as its EXIF says.
        filter: how they are resized for a network (vkrt.media.image.to_input).

    Raises:
        VideoError: there is none, or the first one can't be read.
    """

    def __init__(
        self,
        photos: Sequence[Photo] | np.ndarray,
        name: str,
        cache: int = CACHE,
        on_error: OnError = "raise",
        upright: bool = True,
        filter: Filter = "bilinear",
    ) -> None:
        super().__init__(name, cache, on_error)
        self._upright = upright
        self._filter = filter
        if len(photos) == 0:
            raise VideoError(f"{name} has no frames; give at least one")
        self._photos: Sequence[Photo] | np.ndarray = photos
        self._scale = FloatScale()
        self._count = len(photos)
        self.frame(0)

    def _load(self, index: int) -> np.ndarray:
        try:
            photo = self._photos[index]
        except ImageError as error:
            raise Damage(f"can't be read: {error}") from None
        return read_frame(photo, self._scale, self._upright)

    def _to_input(
        self, index: int, photo: np.ndarray, side: int, threads: int | None
    ) -> np.ndarray:
        return to_input(photo, side, threads=threads, filter=self._filter)

    def _release(self) -> None:
        self._photos = ()


class IteratorFrames(Frames):
    """Read frames from an iterator, live or not: in order, and no further than asked for.

    Only frames that are held can be had again. To iterate is to go on where the last iteration
    stopped.

    Args:
        photos: gives photos; arrays are copied, for a source may fill the same one anew.
        fps: frames a second.
        release: is called on closing.
    """

    def __init__(
        self,
        photos: Iterator[Photo],
        name: str,
        cache: int = CACHE,
        on_error: OnError = "raise",
        fps: float | None = None,
        release: Callable[[], object] | None = None,
    ) -> None:
        super().__init__(name, cache, on_error)
        self._photos = photos
        self._scale = FloatScale()
        self._fps = fps
        self._position = 0  # of the next frame to take
        self._given = 0  # the next frame of an iteration
        self._after = release

    def __iter__(self) -> Iterator[np.ndarray]:
        """Give the frames in order, from where the last iteration stopped."""
        while True:
            with self._lock:
                index = self._given if self._given in self._held else self._position
                pixels = self._get(index)
                self._given = index + 1
            if pixels is None:
                return
            yield pixels

    def _load(self, index: int) -> np.ndarray | None:
        if index < self._position:
            raise VideoError(
                f"frame {index} of {self.name} is gone: only the last {self._capacity} are held; "
                "ask for frames in order or hold more"
            )
        while self._position < index:
            if self._get(self._position) is None:
                return None
        try:
            photo = next(self._photos)
        except StopIteration:
            self._count = self._position
            if self._count == 0:
                raise VideoError(f"{self.name} has no frames; give at least one") from None
            return None
        self._position += 1
        pixels = read_frame(photo, self._scale)
        shared = isinstance(photo, np.ndarray) and np.may_share_memory(pixels, photo)
        return pixels.copy() if shared or is_tensor(photo) else pixels

    def _release(self) -> None:
        self._photos = iter(())
        if self._after is not None:
            self._after()


def read_frame(photo: Photo, scale: FloatScale, upright: bool = True) -> np.ndarray:
    """Return a photo as (H, W, 3) uint8; its floats have the scale of the frames before it.

    Raises:
        Damage: it can't be read.
    """
    try:
        if is_array(photo) or is_nested_numbers(photo):
            return from_array(to_host(photo, "the photo"), scale=scale)
        return read_image(photo, upright)
    except ImageError as error:
        raise Damage(f"can't be read: {error}") from None


def list_pictures(folder: Path) -> list[Path]:
    """Return the picture files of a folder in natural order; other files and folders are left out.

    Raises:
        VideoError: the folder can't be read, or has no picture.
    """
    try:
        names = [entry.name for entry in os.scandir(folder) if is_picture(entry)]
    except OSError as error:
        raise VideoError(f"{folder} can't be read ({error.strerror}); check its rights") from None
    if not names:
        raise VideoError(
            f"folder {folder} has no pictures; give one with a .jpg or .png file for each frame"
        )
    return [folder / name for name in sorted(names, key=natural_key)]


def is_picture(entry: os.DirEntry[str]) -> bool:
    """Tell whether a folder's entry is a picture by its name, and not hidden."""
    suffix = os.path.splitext(entry.name)[1].lower()
    return suffix in PICTURES and not entry.name.startswith(".") and not entry.is_dir()


def natural_key(name: str) -> tuple[list[int | str], str]:
    """Return what sorts names as people count: 2.jpg before 10.jpg, whatever the case.

    A minus at the begin of a name or after anything but a letter or digit is a sign: -2.jpg before
    -1.jpg before 0.jpg, t_-1.jpg before t_0.jpg. Else it joins: shot-1.jpg before shot-2.jpg. Names
    that differ only in case or in zeros before a number go by the text itself.
    """
    parts: list[int | str] = [*NUMBER.split(name.casefold())]
    parts[1::2] = [int(digits) for digits in parts[1::2]]
    return parts, name
