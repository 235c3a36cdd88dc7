"""Photos: reading them within stated limits, and making them a network's input."""

from __future__ import annotations

import io
import math
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, Protocol, TypeAlias

import numpy as np
import PIL
from PIL import Image, ImageOps

from vkrt.arguments import flag
from vkrt.errors import ImageError
from vkrt.media.native import operations
from vkrt.media.photo_arrays import (
    FloatScale,
    as_pixels,
    grey_to_rgb,
    is_array,
    is_nested_numbers,
    to_host,
)
from vkrt.media.photo_formats import HEAD_BYTES, READABLE, describe
from vkrt.weights.safety_limits import MAX_MEGAPIXELS, MAX_PHOTO_BYTES, MOST_MEGAPIXELS

__all__ = ["MAX_PIXELS", "MEAN", "STD", "Filter", "Photo", "max_pixels", "read_image", "to_input"]


class Arrayed(Protocol):
    """Be an array, or a tensor of torch or another package."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any: ...


Photo: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray | Arrayed

Filter: TypeAlias = Literal["bilinear", "bicubic"]

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SCALE = tuple(1.0 / (255.0 * std) for std in STD)
BIAS = tuple(-mean / std for mean, std in zip(MEAN, STD, strict=True))

PILLOW_VERSION = int(PIL.__version__.partition(".")[0])
MEGA = 1_000_000
MAX_PIXELS = MAX_MEGAPIXELS * MEGA
LIMIT = "VKRT_MAX_MEGAPIXELS"
# The first five are those that Pillow has at hand; the others cost it an import of every format.
# HEIF is there once pillow-heif has registered it.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF", "MPO", "AVIF", "HEIF")

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
    low byte, and of an animation the first frame is taken. A file of more than 100 megapixels is
    refused from its header, before anything is decoded; VKRT_MAX_MEGAPIXELS raises that limit to
    as much as 1000, which is the limit of arrays.

    Args:
        source: a path, a file's bytes, an open file, a PIL image, an array or tensor of any device
            and with or without gradients, or nested lists of numbers. An open file is read from
            its begin and put back to where it was; one that can't go back is read to its end.
            Arrays are (H, W), or have 1, 3 (RGB) or 4 channels in their last dimension, or, if
            that has another length, in their first: so (3, H, 3) is taken as (H, W, 3). uint8 is
            taken as it is, uint16 loses its low byte, other whole numbers must be 0..255, True is
            white, and floats are in 0..1 if all of them are, else in 0..255. An (H, W, 3) uint8
            array that is contiguous is returned itself.
        upright: turn the photo as its EXIF says; False keeps the pixels as they are stored.

    Raises:
        ImageError: nothing is there, it is not a picture, damaged, truncated, empty, too large, or
            an array of another form.
    """
    upright = flag("upright", upright, kind=ImageError)
    if isinstance(source, Image.Image):
        return from_picture(source, "the picture", upright)
    if isinstance(source, bytes | bytearray | memoryview):
        return from_stream(io.BytesIO(source), "the picture", upright)
    if isinstance(source, str | os.PathLike):
        return from_path(Path(source), upright)
    if is_array(source) or is_nested_numbers(source):
        return from_array(to_host(source, "the photo"))
    if hasattr(source, "read"):
        return from_file(source, upright)
    raise ImageError(
        f"a photo can't be a {type(source).__name__}; give a path, bytes, an open file, a PIL "
        "image or an (H, W, 3) uint8 array"
    )


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


def from_file(file: Any, upright: bool) -> np.ndarray:
    """Return the photo of an open file, which is put back to where it was."""
    name = str(getattr(file, "name", "the picture"))
    try:
        with rewound(file, name) as stream:
            return from_stream(stream, name, upright)
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name} can't be read ({reason(error)}); open it again") from None


@contextmanager
def rewound(file: Any, name: str) -> Iterator[IO[bytes]]:
    """Give a file at its begin and put it back in the end; what can't go back is held instead."""
    try:
        place = file.tell()
        file.seek(0)
    except (OSError, AttributeError):
        content = file.read(MAX_PHOTO_BYTES + 1)
        if len(content) > MAX_PHOTO_BYTES:
            raise ImageError(
                f"{name} has more than {MAX_PHOTO_BYTES >> 20} MiB; save it to a file first"
            ) from None
        yield io.BytesIO(check_bytes(content, name))
        return
    try:
        yield file
    finally:
        with suppress(OSError, ValueError):
            file.seek(place)


def check_bytes(content: Any, name: str) -> Any:
    """Return what was read of a file, unless that is text."""
    if isinstance(content, str):
        raise ImageError(f'{name} is open as text; open it with "rb"')
    return content


def from_stream(stream: IO[bytes], name: str, upright: bool) -> np.ndarray:
    """Return the photo of an open file."""
    if not check_bytes(stream.read(1), name):
        raise ImageError(f"{name} is empty (0 bytes); give it again or make it anew")
    with open_header(stream, name) as picture:
        return from_picture(picture, name, upright)


def open_header(stream: IO[bytes], name: str) -> Image.Image:
    """Return a picture of which only the header was read.

    Pillow's own opener warns or raises by its own limit before it tells the size, so its format
    readers are called here and max_pixels() is the one limit.
    """
    Image.preinit()
    stream.seek(0)
    head = stream.read(HEAD_BYTES)
    prefix = head[:16]
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
        except Image.DecompressionBombError:
            raise ImageError(
                f"{name} is over Pillow's own limit of pixels; make it smaller, or raise "
                f"PIL.Image.MAX_IMAGE_PIXELS and {LIMIT}"
            ) from None
        except DAMAGE:
            continue
    raise ImageError(f"{name} {describe(head)}")


def from_picture(picture: Image.Image, name: str, upright: bool) -> np.ndarray:
    """Return the photo of a PIL image, decoding it if that is still to be done."""
    lazy = getattr(picture, "tile", None)  # what is decoded already is in memory
    check_size(picture.height, picture.width, name, None if lazy else MOST_MEGAPIXELS * MEGA)
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


def max_pixels() -> int:
    """Return how many pixels a photo that is to be decoded may have.

    Raises:
        ImageError: VKRT_MAX_MEGAPIXELS is no number from 1 to 1000.
    """
    text = os.environ.get(LIMIT)
    if not text:
        return MAX_PIXELS
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not 1 <= limit <= MOST_MEGAPIXELS:
        raise ImageError(f"{LIMIT} must be a number from 1 to {MOST_MEGAPIXELS}, not {text!r:.40}")
    return int(limit * MEGA)


def check_size(height: int, width: int, name: str, most: int | None = None) -> None:
    """Raise an ImageError unless a picture has pixels, and at most max_pixels() or `most`."""
    if height < 1 or width < 1:
        raise ImageError(f"{name} has no pixels ({width}x{height}); give a picture with some")
    limit = max_pixels() if most is None else most
    if height * width > limit:
        needed = math.ceil(height * width / MEGA)
        raised = f" or raise the limit with {LIMIT}={needed} (at most {MOST_MEGAPIXELS})"
        raise ImageError(
            f"{name} is {width}x{height} = {height * width / MEGA:.0f} megapixels, over the limit "
            f"of {limit / MEGA:g}; make it smaller first"
            f"{raised if needed <= MOST_MEGAPIXELS else ''}"
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
        return grey_to_rgb(FloatScale().bytes_of(np.asarray(picture), name))
    if picture.mode.startswith("I"):
        return grey_to_rgb(from_integers(np.asarray(picture), name))
    return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def from_integers(values: np.ndarray, name: str) -> np.ndarray:
    """Return (H, W) uint8 of 16-bit grey; Pillow also gives that as 32-bit integers."""
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(f"{name} has grey values beyond 16 bits; convert it to 8 bits first")
    return (values >> 8).astype(np.uint8)


def from_array(
    array: np.ndarray, name: str = "the photo", scale: FloatScale | None = None
) -> np.ndarray:
    """Return the photo of an array of any form; see read_image."""
    pixels = as_pixels(array, name, scale)
    check_size(pixels.shape[0], pixels.shape[1], name, MOST_MEGAPIXELS * MEGA)
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return grey_to_rgb(pixels.reshape(pixels.shape[:2]))
    return np.ascontiguousarray(pixels[:, :, :3] if pixels.shape[2] == 4 else pixels)


def to_input(
    photo: np.ndarray,
    size: int,
    out: np.ndarray | None = None,
    threads: int | None = None,
    filter: Filter = "bilinear",
) -> np.ndarray:
    """Return a photo as a network's input: resized to a square, (value / 255 - MEAN) / STD.

    The sides are stretched, nothing is padded.

    Args:
        photo: (H, W, 3) uint8 RGB, contiguous, as read_image gives it.
        size: the side of the square.
        out: (3, size, size) float32, contiguous, to write into.
        threads: CPU threads; None is one per core, at most 8.
        filter: "bilinear" is the antialiased resize of SAM 2's image path (torchvision's Resize on
            a tensor); "bicubic" is that of its folders of JPEG frames, Pillow's default: it gives
            whole grey levels, to the bit those of the Pillow that is installed.

    Returns:
        (3, size, size) float32: `out` where it was given.

    Raises:
        ImageError: the photo is no such array.
    """
    pixels = check_photo(photo)
    if filter == "bilinear":
        return operations.resize(pixels, size, SCALE, BIAS, out, threads or 0)
    down_first = goes_down_first(pixels.shape[0], pixels.shape[1], size)
    return operations.resize_bicubic(pixels, size, SCALE, BIAS, out, threads or 0, down_first)


def goes_down_first(height: int, width: int, size: int) -> bool:
    """Tell whether Pillow's resize to a square filters columns before rows, as they round apart.

    From version 13 on it does so where the height shrinks by more than twice what the width does.
    """
    shrinks = height > size and height - size > 2 * (width - size)
    return shrinks and PILLOW_VERSION >= 13


def check_photo(photo: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) uint8 contiguous, once it is clear that the pixels need no conversion."""
    if not isinstance(photo, np.ndarray) or photo.dtype != np.uint8:
        raise ImageError("the photo must be (H, W, 3) uint8, as read_image gives it; read it first")
    return from_array(photo)
