"""Frames in one array or tensor, in any common layout and dtype: taken one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from vkrt.errors import VkrtError
from vkrt.media.photo_arrays import CHANNELS, FloatScale, as_pixels, is_tensor, to_host

__all__ = ["ArrayFrames"]


class ArrayFrames(Sequence[np.ndarray]):
    """Give the frames of a batch or clip as photos by number; each is converted when it is taken.

    All floats share one scale: they are in 0..1 if none in the whole array is above 1, give or
    take half a grey level, else in 0..255.

    Args:
        array: (T, H, W, C) or (T, C, H, W) with 1, 3 or 4 channels, or grey (T, H, W); numpy or a
            tensor of any device. It is not copied.
        name: what errors call it.
        kind: the error to raise.

    Raises:
        kind: it has another shape.
    """

    def __init__(self, array: Any, name: str, kind: type[VkrtError]) -> None:
        # A tensor stays where it is: one frame at a time comes to the host.
        self._array = array.detach() if is_tensor(array) else to_host(array, name)
        shape = tuple(self._array.shape)
        if len(shape) == 3 and shape[2] in CHANNELS:
            raise kind(
                f"{name} is one photo by its shape {shape}; give array[None] for a clip of one "
                "frame, or array[..., None] for grey frames"
            )
        # Of three dimensions all frames are grey, of four one has its channels.
        channelled = len(shape) == 4 and (shape[3] in CHANNELS or shape[1] in CHANNELS)
        if len(shape) != 3 and not channelled:
            raise kind(
                f"{name} must be (T, H, W, 3) uint8 RGB, or grey (T, H, W), RGBA, channels first, "
                f"uint16 or float, not {shape} {self._array.dtype}; transpose or convert it first"
            )
        self._grey = len(shape) == 3
        self._name = name
        self._scale: FloatScale | None = None

    def __len__(self) -> int:
        return int(self._array.shape[0])

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[np.ndarray]: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | Sequence[np.ndarray]:
        """Return a frame as (H, W) or (H, W, C) uint8.

        Raises:
            ImageError: its values are no photo's.
        """
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        frame = self._frame(index)
        if frame.dtype.kind == "f" and self._scale is None:
            self._scale = FloatScale(self._find_top())
        return as_pixels(frame, self._name, self._scale)

    def _frame(self, index: int) -> np.ndarray:
        """Return a frame with the dtype that it has."""
        frame = to_host(self._array[index], self._name)
        # Else a row of 3 pixels would pass for channels.
        return frame[:, :, None] if self._grey else frame

    def _find_top(self) -> float | None:
        """Return 255 where any float is well above 1, None where that is for each to say."""
        for index in range(len(self)):
            frame = self._frame(index)
            if frame.size and float(frame.max()) > 2:
                return 255.0
        return None
