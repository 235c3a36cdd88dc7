"""Pictures that are made: what they start from, and the files that they end in."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vkrt.errors import GenerationError, ImageError
from vkrt.limited import parse_json
from vkrt.media.files import write_atomically
from vkrt.media.image import Photo, open_header, read_image
from vkrt.media.photo_arrays import is_array, is_nested_numbers, to_host

__all__ = [
    "KEY",
    "read_mask",
    "read_parameters",
    "read_rgb",
    "save_png",
    "to_latent_mask",
    "to_picture",
    "to_pixels",
]

# The text chunk of a PNG that says how it was made.
KEY = "parameters"
WHITE = 0.5


def read_rgb(photo: Photo, size: tuple[int, int]) -> np.ndarray:
    """Return a photo as the autoencoder takes it: resized, value / 127.5 - 1.

    The resize is Pillow's antialiased Lanczos; the sides are stretched, nothing is cut.

    Args:
        photo: anything that read_image takes.
        size: height and width.

    Returns:
        (3, height, width) float32 in [-1, 1], contiguous.

    Raises:
        ImageError: the photo can't be read.
    """
    picture = resized(Image.fromarray(read_image(photo)), size)
    pixels = np.asarray(picture, np.float32) / np.float32(255)
    return np.ascontiguousarray((2 * pixels - 1).transpose(2, 0, 1))


def resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return a picture at a height and width."""
    height, width = size
    if picture.size == (width, height):
        return picture
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def read_mask(mask: Photo, photo_size: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Return where a photo is to be painted anew: where its mask is white rather than black.

    Args:
        mask: anything that read_image takes, of any mode; also an array or tensor (H, W) of bool,
            of float in [0, 1], or of whole numbers that are 0 or 1. Colours count by their
            lightness, alpha does not.
        photo_size: height and width of the photo that it belongs to.
        size: height and width to give it.

    Returns:
        (height, width) float32: 1 where to paint, 0 where to keep.

    Raises:
        ImageError: the mask can't be read, or is not as large as the photo.
    """
    grey = Image.fromarray(read_image(to_bytes(mask))).convert("L")
    if (grey.height, grey.width) != tuple(photo_size):
        raise ImageError(
            f"the mask is {grey.width}x{grey.height} but the image is "
            f"{photo_size[1]}x{photo_size[0]}; give a mask of the image's size"
        )
    values = np.asarray(resized(grey, size), np.float32) / np.float32(255)
    return (values >= WHITE).astype(np.float32)


def to_bytes(mask: Photo) -> Photo:
    """Return a mask whose white is 255, where it is an array that has 1 for it."""
    if is_array(mask) or is_nested_numbers(mask):
        mask = to_host(mask, "the mask")
    if not isinstance(mask, np.ndarray) or mask.size == 0:
        return mask
    if mask.dtype.kind not in "biuf":
        return mask
    low, high = float(mask.min()), float(mask.max())
    if mask.dtype.kind != "f":
        return mask.astype(np.uint8) * np.uint8(255) if low >= 0 and high <= 1 else mask
    if not (low >= 0.0 and high <= 1.0):  # also true of NaN
        raise ImageError(f"the mask has values from {low:g} to {high:g}; scale them to 0..1 first")
    return np.rint(mask * 255).astype(np.uint8)


def to_latent_mask(mask: np.ndarray, stride: int = 8) -> np.ndarray:
    """Return a mask at the size of a latent: what it says of each latent pixel's first pixel.

    Args:
        mask: (H, W)
        stride: pixels along a latent pixel; it divides both sides.

    Returns:
        (H / stride, W / stride), contiguous.
    """
    return np.ascontiguousarray(mask[::stride, ::stride])


def to_pixels(decoded: np.ndarray) -> np.ndarray:
    """Return what the autoencoder gave as pixels: round(255 * clamp(x / 2 + 1 / 2)).

    Args:
        decoded: (3, H, W) float32, [-1, 1] is what can be shown.

    Returns:
        (H, W, 3) uint8, contiguous.

    Raises:
        GenerationError: not all of it are numbers.
    """
    if not np.isfinite(decoded).all():
        raise GenerationError(
            "the picture has values that are not finite numbers: the precision was too low for "
            'these weights; take precision="fp32"'
        )
    values = np.clip(decoded * np.float32(0.5) + np.float32(0.5), 0, 1)
    return np.ascontiguousarray((values * 255).round().astype(np.uint8).transpose(1, 2, 0))


def to_picture(decoded: np.ndarray) -> Image.Image:
    """Return what the autoencoder gave (3, H, W) as an RGB picture; see to_pixels."""
    return Image.fromarray(to_pixels(decoded))


def save_png(
    image: Image.Image, path: str | os.PathLike[str], parameters: Mapping[str, Any]
) -> None:
    """Write a PNG with the parameters that it was made with, whole or not at all.

    Args:
        image: any mode that PNG has.
        path: the file to write; one that is there is replaced at the end only.
        parameters: what JSON can hold, also numpy numbers and paths.

    Raises:
        OutputError: the file can't be written.
    """
    info = PngInfo()
    # ASCII: the chunk's plain form holds no more, and half of a surrogate pair can't be encoded.
    info.add_text(KEY, json.dumps(dict(parameters), allow_nan=False, default=plain))

    def write(stream: BinaryIO) -> None:
        image.save(stream, "PNG", pnginfo=info)

    write_atomically(path, write)


def plain(value: Any) -> Any:
    """Return what JSON holds in place of a value that it can't.

    Raises:
        TypeError: there is nothing.
    """
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"a parameter can't be a {type(value).__name__}")


def read_parameters(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the parameters that a PNG was made with, as save_png wrote them.

    Raises:
        ImageError: the file is no picture, or has no such parameters.
    """
    try:
        with Path(path).open("rb") as stream, open_header(stream, str(path)) as picture:
            text = picture.info.get(KEY)
    except ImageError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"{path} can't be read ({reason}); check its path") from None
    try:
        found = parse_json(text) if isinstance(text, str) else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ImageError(
            f"{path} does not say how it was made; give a PNG as `vkrt generate` wrote it"
        )
    return found
