"""Photos: reading them within stated limits, and making them a network's input."""

from __future__ import annotations

import io
import os
import stat
import struct
import zlib
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from vkrt.errors import ImageError
from vkrt.media.native import operations

__all__ = ["MAX_PIXELS", "MEAN", "STD", "Photo", "read_image", "to_input"]

Photo: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SCALE = tuple(1.0 / (255.0 * std) for std in STD)
BIAS = tuple(-mean / std for mean, std in zip(MEAN, STD, strict=True))

MAX_PIXELS = 100_000_000
# The first five are those that Pillow has at hand; the others cost it an import of every format.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF", "MPO")
READABLE = "give a JPEG, PNG, WebP, BMP, TIFF, GIF or PPM file"

# What Pillow raises on bytes that are not what they say they are.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def read_image(source: Photo, upright: bool = True) -> np.ndarray:
    """Return a photo as (H, W, 3) uint8 RGB, contiguous, upright.

    The EXIF rotation of a file or PIL image is applied, alpha is dropped, 16-bit grey loses its
    low byte, and of an animation the first frame is taken. A size beyond MAX_PIXELS is refused
    from the header, before anything is decoded.

    Args:
        source: a path, a file's bytes, a PIL image, or an array: (H, W, 3) uint8 RGB, also
            (H, W), (H, W, 1) and (H, W, 4) uint8. An array that fits is returned as it is.
        upright: turn the photo as its EXIF says; False keeps the pixels as they are stored.

    Raises:
        ImageError: nothing is there, it is not a picture, damaged, truncated, empty or too large.
    """
    if isinstance(source, np.ndarray):
        return from_array(source)
    if isinstance(source, Image.Image):
        return from_picture(source, "the picture", upright)
    if isinstance(source, bytes | bytearray | memoryview):
        return from_stream(io.BytesIO(source), "the picture", upright)
    if not isinstance(source, str | os.PathLike):
        raise ImageError(
            f"a photo can't be a {type(source).__name__}; give a path, bytes, a PIL image or an "
            "(H, W, 3) uint8 array"
        )
    return from_path(Path(source), upright)


def from_path(path: Path, upright: bool) -> np.ndarray:
    """Return the photo of a file."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist; check the path of the photo") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{path} can't be read ({reason(error)}); check the path") from None
    if stat.S_ISDIR(mode):
        raise ImageError(f"{path} is a folder; give one picture file")
    if not stat.S_ISREG(mode):
        raise ImageError(f"{path} is not a regular file; {READABLE}")
    try:
        stream = path.open("rb")
    except OSError as error:
        raise ImageError(f"{path} can't be opened ({reason(error)}); check its rights") from None
    with stream:
        return from_stream(stream, str(path), upright)


def reason(error: Exception) -> str:
    """Return what the system says of an error, without the path."""
    return getattr(error, "strerror", None) or str(error)


def from_stream(stream: IO[bytes], name: str, upright: bool) -> np.ndarray:
    """Return the photo of an open file."""
    if not stream.read(1):
        raise ImageError(f"{name} is empty (0 bytes); give it again or make it anew")
    with open_header(stream, name) as picture:
        return from_picture(picture, name, upright)


def open_header(stream: IO[bytes], name: str) -> Image.Image:
    """Return a picture of which only the header was read.

    Pillow's own opener warns or raises by its own limit before it tells the size, so its format
    readers are called here and MAX_PIXELS is the one limit.
    """
    Image.preinit()
    stream.seek(0)
    prefix = stream.read(16)
    for kind in FORMATS:
        if kind not in Image.OPEN:
            Image.init()
        factory, accept = Image.OPEN.get(kind, (None, None))
        accepted = accept is None or accept(prefix)
        # A text instead of a truth value says that this Pillow was built without the format.
        if factory is None or not accepted or isinstance(accepted, str):
            continue
        stream.seek(0)
        try:
            return factory(stream, "")
        except DAMAGE:
            continue
    raise ImageError(f"{name} is not a picture, or its header is damaged; {READABLE}")


def from_picture(picture: Image.Image, name: str, upright: bool) -> np.ndarray:
    """Return the photo of a PIL image, decoding it if that is still to be done."""
    check_size(picture.height, picture.width, name)
    try:
        picture.load()
    except DAMAGE as error:
        state = "truncated" if "truncated" in str(error) else "damaged"
        raise ImageError(f"{name} is {state} ({error}); get the whole file again") from None
    try:
        pixels = to_rgb(turn_upright(picture) if upright else picture, name)
    except DAMAGE as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(
            f"{name} has mode {picture.mode}, not readable as RGB; {READABLE}"
        ) from None
    return np.ascontiguousarray(pixels)


def check_size(height: int, width: int, name: str) -> None:
    """Raise an ImageError unless a picture has pixels, and not too many."""
    if height < 1 or width < 1:
        raise ImageError(f"{name} has no pixels ({width}x{height}); give a picture with some")
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"{name} is {width}x{height} = {height * width / 1e6:.0f} megapixels, over the limit "
            f"of {MAX_PIXELS // 1_000_000}; make it smaller first"
        )


def turn_upright(picture: Image.Image) -> Image.Image:
    """Return the picture turned as its EXIF says; a damaged EXIF turns nothing."""
    try:
        return ImageOps.exif_transpose(picture)
    except DAMAGE:
        return picture


def to_rgb(picture: Image.Image, name: str) -> np.ndarray:
    """Return (H, W, 3) uint8 of a picture of any mode."""
    if picture.mode == "F":
        return grey_to_rgb(from_floats(np.asarray(picture), name))
    if picture.mode.startswith("I"):
        return grey_to_rgb(from_integers(np.asarray(picture), name))
    return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def from_integers(values: np.ndarray, name: str) -> np.ndarray:
    """Return (H, W) uint8 of 16-bit grey; Pillow also gives that as 32-bit integers."""
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(f"{name} has grey values beyond 16 bits; convert it to 8 bits first")
    return (values >> 8).astype(np.uint8)


def from_floats(values: np.ndarray, name: str) -> np.ndarray:
    """Return (H, W) uint8 of float grey in [0, 1] or [0, 255]."""
    low, high = float(values.min()), float(values.max())
    if not (low >= 0.0 and high <= 255.0):  # also true of NaN
        raise ImageError(
            f"{name} has float values from {low:g} to {high:g}; scale them to 0..1 or 0..255 first"
        )
    return np.rint(values * 255.0 if high <= 1.0 else values).astype(np.uint8)


def grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) of (H, W)."""
    return np.repeat(grey[:, :, None], 3, axis=2)


def from_array(array: np.ndarray) -> np.ndarray:
    """Return the photo of an array."""
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise ImageError(
            f"a photo array must be (H, W, 3) uint8 RGB, not {array.shape} {array.dtype}; "
            "transpose or convert it first"
        )
    check_size(array.shape[0], array.shape[1], "the photo array")
    if channels == 1:
        return grey_to_rgb(array.reshape(array.shape[:2]))
    return np.ascontiguousarray(array if channels == 3 else array[:, :, :3])


def to_input(
    photo: np.ndarray, size: int, out: np.ndarray | None = None, threads: int | None = None
) -> np.ndarray:
    """Return a photo as a network's input: resized to a square, (value / 255 - MEAN) / STD.

    The resize is the antialiased bilinear one that SAM 2's image path has (torchvision's Resize on
    a tensor): the sides are stretched, nothing is padded.

    Args:
        photo: (H, W, 3) uint8 RGB, contiguous, as read_image gives it.
        size: the side of the square.
        out: (3, size, size) float32, contiguous, to write into.
        threads: CPU threads; None is one per core, at most 8.

    Returns:
        (3, size, size) float32: `out` where it was given.

    Raises:
        ImageError: the photo is no such array.
    """
    return operations.resize(from_array(photo), size, SCALE, BIAS, out, threads or 0)
