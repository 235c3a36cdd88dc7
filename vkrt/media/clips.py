"""Clips as files: frames one after another into an .mp4 or .gif."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vkrt.errors import OutputError, VideoError
from vkrt.media.decoder import load_av
from vkrt.media.image import check_size
from vkrt.media.pending import PendingOutput
from vkrt.temporary import explained

__all__ = ["ClipWriter"]

# By falling quality at one size; what a build of PyAV has depends on its licence.
ENCODERS = ("libx264", "libopenh264", "mpeg4")
OPTIONS = {
    "libx264": {"crf": "18", "preset": "veryfast"},
    "libopenh264": {"b": "8M"},
    "mpeg4": {"q:v": "3", "qmin": "2", "qmax": "3"},
}
BT709 = 1
LIMITED = 1  # luma from 16 to 235
# Browsers slow a GIF down when a frame's delay is below 2 hundredths of a second.
FASTEST_GIF = 50
FASTEST = 1000
# What MPEG-4 can state of a second's parts.
LARGEST_PART = 65535
COLOURS = 256


class ClipWriter(PendingOutput):
    """Write frames of one size into a clip, in a `with` block.

    An .mp4 is H.264 where PyAV can encode that, else MPEG-4; a side of odd length is made even by
    repeating the last row or column, since both want that. A .gif has 256 colours a frame. No more
    than a few frames are in memory. The file appears under its name when the block is left.

    Args:
        path: ends in .mp4 or .gif.
        fps: frames a second, up to 1000, of a GIF up to 50.

    Raises:
        OutputError: the name ends otherwise, the folder is missing, or `path` may not be written.
        VideoError: no clip can have the rate, or PyAV is missing.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float) -> None:
        self._kind = Path(path).suffix.lower().lstrip(".")
        if self._kind not in ("mp4", "gif"):
            raise OutputError(f"{path} can't be a clip; give a name that ends in .mp4 or .gif")
        self._rate = as_rate(fps, FASTEST_GIF if self._kind == "gif" else FASTEST)
        self._av = load_av()
        super().__init__(path)
        self._count = 0
        self._size: tuple[int, int] | None = None
        self._container: Any = None
        self._encoder: Any = None
        self._convert: Callable[[Any, np.ndarray], Any] = (
            to_palette if self._kind == "gif" else to_planes
        )

    def __enter__(self) -> ClipWriter:
        return self

    def write(self, frame: np.ndarray) -> None:
        """Add a frame, (H, W, 3) uint8 RGB.

        Raises:
            VideoError: it is no such array, of another size than the first, or the clip is closed.
            ImageError: it has no pixels, or too many.
            OutputError: the disk is full.
        """
        if not self.is_open:
            raise VideoError(f"{self.path} is closed; open another clip for more frames")
        self._check(frame)
        picture = self._convert(self._av, frame)
        picture.pts, picture.time_base = self._count, 1 / self._rate
        with self._explained():
            if self._container is None:
                self._start(picture.height, picture.width)
            self._container.mux(self._encoder.encode(picture))
        self._count += 1

    def _check(self, frame: np.ndarray) -> None:
        """Raise unless a frame fits the others."""
        shape = frame.shape
        if frame.dtype != np.uint8 or frame.ndim != 3 or shape[2] != 3:
            raise VideoError(
                f"a frame must be (H, W, 3) uint8 RGB, not {shape} {frame.dtype}; convert it first"
            )
        check_size(shape[0], shape[1], "the frame")
        self._size = self._size or (shape[0], shape[1])
        if self._size != shape[:2]:
            height, width = self._size
            raise VideoError(
                f"frame {self._count} of {self.path} is {shape[1]}x{shape[0]}, but the first is "
                f"{width}x{height}; scale all frames to one size first"
            )

    def _start(self, height: int, width: int) -> None:
        """Open the container and its one stream."""
        self._container = self._av.open(self.stream, "w", format=self._kind)
        name = "gif" if self._kind == "gif" else find_encoder(self._av)
        self._encoder = self._container.add_stream(
            name, rate=self._rate, options=OPTIONS.get(name, {})
        )
        self._encoder.height, self._encoder.width = height, width
        self._encoder.pix_fmt = "pal8" if self._kind == "gif" else "yuv420p"
        if self._kind == "mp4":
            context = self._encoder.codec_context
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = LIMITED

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn the errors of PyAV and of the system into one line that says what to do."""
        with explained(self.path):
            try:
                yield
            except self._av.FFmpegError as error:
                if isinstance(error, OSError):
                    raise
                raise OutputError(
                    f"{self.path} can't be encoded ({error.strerror}); try the other of .mp4 and "
                    ".gif"
                ) from None

    def _finish(self) -> None:
        if self._container is None:
            raise VideoError(f"{self.path} would have no frames; write at least one")
        with self._explained():
            self._container.mux(self._encoder.encode(None))
            container, self._container = self._container, None
            container.close()

    def _abandon(self) -> None:
        if self._container is not None:
            # What can't be written any more is of no use either.
            with suppress(OSError, self._av.FFmpegError):
                self._container.close()


def as_rate(fps: float, fastest: int) -> Fraction:
    """Return frames a second as a fraction that a file can state: 23.976 as 2997/125.

    Raises:
        VideoError: it is not a number above 0, or too high.
    """
    if not (math.isfinite(fps) and 0.01 <= fps <= fastest):
        raise VideoError(f"a clip can't have {fps:g} frames a second; give 0.01 to {fastest}")
    rate = Fraction(fps).limit_denominator(1001)
    return rate if rate.numerator <= LARGEST_PART else Fraction(round(fps))


def find_encoder(av: Any) -> str:
    """Return the best encoder for an .mp4 that this PyAV has."""
    for name in ENCODERS[:-1]:
        try:
            av.codec.Codec(name, "w")
        except ValueError:  # av.codec.codec.UnknownCodecError is one
            continue
        return name
    return ENCODERS[-1]


def to_planes(av: Any, frame: np.ndarray) -> Any:
    """Return a frame as PyAV's, in the colours of HD video, its sides even."""
    height, width = frame.shape[:2]
    if height % 2 or width % 2:
        frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")
    return picture.reformat(format="yuv420p", dst_colorspace=BT709)


def to_palette(av: Any, frame: np.ndarray) -> Any:
    """Return a frame as PyAV's, with the 256 colours that suit it best."""
    small = Image.fromarray(frame).quantize(COLOURS, Image.Quantize.MEDIANCUT)
    colours = np.asarray(small.getpalette() or [], np.uint8).reshape(-1, 3)
    palette = np.full((COLOURS, 4), 255, np.uint8)  # alpha, red, green, blue
    palette[: len(colours), 1:] = colours
    return av.VideoFrame.from_ndarray((np.asarray(small), palette), "pal8")
