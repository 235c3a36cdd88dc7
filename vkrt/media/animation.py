"""Animated WebP files as clips, read by Pillow: PyAV takes their canvas for a damaged picture."""

from __future__ import annotations

import os
from typing import BinaryIO

import numpy as np
from PIL import Image

from vkrt.errors import ImageError, VideoError
from vkrt.media.frames import CACHE, Damage, Frames, OnError
from vkrt.media.image import DAMAGE, check_size, open_header, to_rgb, turn_upright
from vkrt.weights.safety_limits import MAX_PHOTO_BYTES

__all__ = ["WebpFrames", "is_webp", "read_durations"]

MILLISECONDS = 1000
# Chunks of a file: frames, and what else a program may add.
MOST_CHUNKS = 200_000


class WebpFrames(Frames):
    """Read frames from a WebP file: each is the whole canvas, as disposal and blending make it.

    Going backwards decodes from the start again, for that is how the frames are stored.

    Args:
        file: open and seekable; it is read into memory at once, compressed.
        owned: close the file in the end.

    Raises:
        VideoError: it is damaged, or its first frame is.
        ImageError: the canvas is too large.
    """

    def __init__(
        self,
        file: BinaryIO,
        name: str,
        cache: int = CACHE,
        on_error: OnError = "raise",
        owned: bool = False,
    ) -> None:
        super().__init__(name, cache, on_error)
        self._file, self._owned = file, owned
        if file.seek(0, os.SEEK_END) > MAX_PHOTO_BYTES:
            raise VideoError(f"{name} is over {MAX_PHOTO_BYTES >> 20} MiB; give it as a video file")
        durations = read_durations(file)
        try:
            self._picture: Image.Image = open_header(file, name)
        except ImageError as error:
            raise VideoError(f"{error}; or get the whole clip again") from None
        check_size(self._picture.height, self._picture.width, f"a frame of {name}")
        self._count = int(getattr(self._picture, "n_frames", 1))
        # The last frame's own duration does not separate it from another.
        spans = durations[:-1]
        if len(durations) == self._count and any(spans):
            self._fps = MILLISECONDS * len(spans) / sum(spans)
        self.frame(0)

    def _load(self, index: int) -> np.ndarray:
        try:
            self._picture.seek(index)
            self._picture.load()
            return np.ascontiguousarray(to_rgb(turn_upright(self._picture), self.name))
        except DAMAGE as error:
            raise Damage(f"is damaged ({error})") from None

    def _release(self) -> None:
        self._picture = Image.new("RGB", (1, 1))
        if self._owned:
            self._file.close()


def is_webp(file: BinaryIO) -> bool:
    """Tell whether a file is a WebP by its first bytes; it is put back to its begin."""
    file.seek(0)
    head = file.read(12)
    file.seek(0)
    return head[:4] == b"RIFF" and head[8:] == b"WEBP"


def read_durations(file: BinaryIO) -> list[int]:
    """Return for how many milliseconds each frame of a WebP is shown, as far as it is whole."""
    durations = []
    place = 12
    for _ in range(MOST_CHUNKS):
        file.seek(place)
        head = file.read(24)
        if len(head) < 8:
            break
        if head[:4] == b"ANMF" and len(head) == 24:
            durations.append(int.from_bytes(head[20:23], "little"))
        length = int.from_bytes(head[4:8], "little")
        place += 8 + length + length % 2
    file.seek(0)
    return durations
