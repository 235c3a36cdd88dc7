"""Photos as arrays and tensors: every common layout and dtype, made (H, W, C) uint8."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
from PIL import Image

from vkrt.errors import ImageError
from vkrt.media.host_arrays import host_array

__all__ = [
    "FloatScale",
    "as_pixels",
    "grey_to_rgb",
    "is_array",
    "is_nested_numbers",
    "to_bytes",
    "to_host",
]

CHANNELS = (1, 3, 4)
FORMS = "give (H, W, 3) uint8, or grey, RGBA, channels first, uint16, or floats in 0..1 or 0..255"
# Half a grey level: how far rounding and resizing may take floats beyond 0..1.
HALF = 0.5 / 255
# A float photo whose largest value is between these two could be either scale.
UNCLEAR = (1 + HALF, 2.0)
MOST_DIMENSIONS = 8


class FloatScale:
    """Tell floats in [0, 1] from those in [0, 255]: alike for all frames of a clip.

    A lone photo whose values are all within [0, 1], give or take half a grey level, is in [0, 1].
    In a clip the first frame that is not all black decides.

    Attributes:
        top: what white is, 1.0 or 255.0; None until that is decided.
    """

    def __init__(self, top: float | None = None) -> None:
        self.top = top

    def bytes_of(self, values: np.ndarray, name: str) -> np.ndarray:
        """Return floats as uint8, rounded.

        Raises:
            ImageError: they are not finite, or beyond the scale.
        """
        low, high = float(values.min()), float(values.max())
        if not np.isfinite((low, high)).all():
            raise ImageError(
                f"{name} has values that are not finite numbers; replace them first, or "
                "scale them to 0..1"
            )
        top = self.top or infer_top(low, high)
        if top is None or not (-HALF * top <= low and high <= top + HALF * top):
            others = "" if self.top is None else f", but the frames before it have 0..{self.top:g}"
            raise ImageError(
                f"{name} has float values from {low:g} to {high:g}{others}; scale them to 0..1 or "
                "0..255 first"
            )
        if high > 0:  # all black is the same in both
            self.top = top
        levels = values.astype(np.float32) * np.float32(255 / top)
        return np.rint(levels).clip(0, 255).astype(np.uint8)


def infer_top(low: float, high: float) -> float | None:
    """Return what white is in a photo with these extremes, None where that is unclear."""
    if high <= UNCLEAR[0]:
        return 1.0
    return 255.0 if high > UNCLEAR[1] else None


def is_array(value: Any) -> bool:
    """Tell whether a value is a numpy array, a tensor, or alike; a PIL image is not."""
    if isinstance(value, np.ndarray | np.generic | Image.Image):
        return not isinstance(value, Image.Image)
    return is_tensor(value) or hasattr(value, "__array__") or hasattr(value, "__array_interface__")


def is_tensor(value: Any) -> bool:
    """Tell whether a value is a torch tensor, without importing torch."""
    return hasattr(value, "detach") and hasattr(value, "cpu")


def is_nested_numbers(value: Any) -> bool:
    """Tell whether a value is a list of lists of numbers, by its first ones."""
    depth = 0
    while isinstance(value, list | tuple) and len(value) and depth < MOST_DIMENSIONS:
        value, depth = value[0], depth + 1
    return depth > 1 and isinstance(value, numbers.Number | np.bool_)


def to_host(value: Any, name: str) -> np.ndarray:
    """Return an array, a tensor of any device and dtype, or nested lists as a numpy array.

    Raises:
        ImageError: it can't be one.
    """
    try:
        if np.ma.is_masked(value):
            raise ImageError(f"{name} has masked values; fill them first (numpy.ma.filled)")
        return host_array(value)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(
            f"{name} can't be made a numpy array ({error}); give a regular one on the CPU"
        ) from None


def as_pixels(array: np.ndarray, name: str, scale: FloatScale | None = None) -> np.ndarray:
    """Return a photo as (H, W) or (H, W, C) uint8 with 1, 3 or 4 channels; a view where it can be.

    The last dimension holds the channels if its length is 1, 3 or 4, else the first one.

    Raises:
        ImageError: the shape, the dtype or the values are no photo's.
    """
    laid = channels_last(array)
    if laid is None:
        raise ImageError(
            f"{name} must be (H, W, 3) uint8 RGB or alike, not {array.shape} {array.dtype}; "
            f"{advice(array)}"
        )
    # What has no values is told by its size.
    return to_bytes(laid, name, scale or FloatScale()) if laid.size else laid.astype(np.uint8)


def channels_last(array: np.ndarray) -> np.ndarray | None:
    """Return a view with the channels last, None of what is no photo by its shape."""
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in CHANNELS):
        return array
    if array.ndim == 3 and array.shape[0] in CHANNELS:
        return array.transpose(1, 2, 0)
    return None


def advice(array: np.ndarray) -> str:
    """Return what to do with an array of another shape."""
    if array.ndim == 4:
        return "that is a batch: give one of its photos"
    return FORMS


def to_bytes(values: np.ndarray, name: str, scale: FloatScale) -> np.ndarray:
    """Return numbers of any dtype as uint8: uint16 loses its low byte, True is white.

    Raises:
        ImageError: they are no numbers, or out of range.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "f":
        return scale.bytes_of(values, name)
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return (values >> 8).astype(np.uint8)
    if values.dtype.kind not in "iu":
        raise ImageError(
            f"{name} must be (H, W, 3) uint8 RGB or alike, not {values.shape} {values.dtype}; "
            f"{FORMS}"
        )
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 255:
        raise ImageError(
            f"{name} is {values.dtype} with values from {low} to {high}; give 0..255, or 16-bit "
            "values as uint16"
        )
    return values.astype(np.uint8)


def grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) of (H, W)."""
    return np.repeat(grey[:, :, None], 3, axis=2)
