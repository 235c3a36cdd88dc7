"""Frames of a video file: decoded in order, or from the keyframe before the one that is wanted."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from vkrt.errors import VideoError
from vkrt.media.decoder import Decoder, open_file
from vkrt.media.frame_scaler import FrameScaler
from vkrt.media.frames import CACHE, Damage, Frames, OnError
from vkrt.media.image import to_input
from vkrt.media.ledger import Picture

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

__all__ = ["FileFrames"]

DAMAGED = "is damaged"


class LostError(Exception):
    """Say that after a jump the file does not give the frames that it gave before."""


class FileFrames(Frames):
    """Read frames from a file that PyAV decodes.

    A frame's number is its place among all that the decoder gives from the start, damaged ones
    included, whatever the container states. So the first way to a frame decodes all before it;
    after that their times are known, 8 bytes each, and reading jumps to the keyframe before.

    Args:
        file: open and seekable; it is read while this is open.
        owned: close the file in the end.

    Raises:
        VideoError: it is no video or has no frame, the first one is damaged, or PyAV is missing.
        ImageError: the frames are too large.
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
        self._times = array("q")  # of every frame met so far
        self._keys = array("q")  # numbers of the frames that decoding can start at
        self._damaged: set[int] = set()
        self._ordered = True  # the times rise, so that a frame can be told by its time
        self._next = 0  # the number of what the decoder gives next
        self._jumped = False  # since the decoder was opened
        self._decoded: dict[int, VideoFrame] = {}  # what held frames were decoded to
        self._scaler = FrameScaler()
        self._decoder: Decoder = open_file(file, name)
        try:
            self._fps = self._decoder.fps
            if self._get(0) is None:
                raise VideoError(f"{name} has no frames; give a clip with at least one")
        except BaseException:
            self._decoder.close()
            raise

    @property
    def expected(self) -> int | None:
        """Return how many frames to expect: count, or what the file claims until that is known."""
        return self._decoder.claimed if self._count is None else self._count

    def _load(self, index: int) -> np.ndarray | None:
        if index in self._damaged:
            raise Damage(DAMAGED)
        try:
            self._approach(index)
            return self._read_to(index)
        except LostError:
            self._restart()
            return self._read_to(index)

    def _measure(self) -> int:
        try:
            self._approach(len(self._times))
            self._skip_rest()
        except LostError:
            self._restart()
            self._skip_rest()
        return len(self._times)

    def _approach(self, index: int) -> None:
        """Bring the decoder to the best place before a frame."""
        place = bisect_right(self._keys, index) - 1 if self._ordered else -1
        key = self._keys[place] if place >= 0 else 0
        if key <= self._next <= index:
            return
        if key == 0:
            self._restart()
            return
        self._jumped = True
        self._next = key
        try:
            self._decoder.seek(self._times[key])
        except OSError:
            raise LostError from None

    def _restart(self) -> None:
        """Start anew from the first frame."""
        self._decoder.close()
        self._decoder = open_file(self._file, self.name)
        self._next = 0
        self._jumped = False

    def _read_to(self, index: int) -> np.ndarray | None:
        """Return a frame at or after the decoder's place, None at the end of the file."""
        for number, picture in self._advance():
            if picture.frame is None:
                if number == index:
                    raise Damage(DAMAGED)
            elif number == index:
                return self._to_rgb(number, picture.frame)
            # Going backwards asks for these next.
            elif index - number < self._capacity and number not in self._held:
                with suppress(Damage):  # that is told when it is asked for
                    self._hold(number, self._to_rgb(number, picture.frame))
        return None

    def _to_rgb(self, number: int, frame: VideoFrame) -> np.ndarray:
        """Return a decoded frame as RGB, and keep it as it is for as long as that is held."""
        for old in self._decoded.keys() - self._held.keys():
            del self._decoded[old]
        self._decoded[number] = frame
        return self._decoder.to_rgb(frame)

    def _to_input(
        self, index: int, photo: np.ndarray, side: int, threads: int | None
    ) -> np.ndarray:
        frame = self._decoded.get(index)
        # One that stands in for a damaged frame was decoded under another number.
        square = photo if frame is None else self._scaler.square(frame, side)
        return to_input(square, side, threads=threads)

    def _skip_rest(self) -> None:
        """Decode to the end of the file."""
        for _ in self._advance():
            pass

    def _advance(self) -> Iterator[tuple[int, Picture]]:
        """Give the pictures from the decoder's place on, each with its number."""
        for picture in self._decoder:
            number = self._next
            if number == len(self._times):
                self._record(picture)
            elif self._jumped:
                self._compare(number, picture)
            self._next += 1
            yield number, picture
        if self._next < len(self._times) and self._jumped:
            raise LostError
        self._finish()

    def _record(self, picture: Picture) -> None:
        """Note a frame that is met for the first time."""
        number = len(self._times)
        before = self._times[-1] if number else None
        if picture.time is None or (before is not None and picture.time <= before):
            self._ordered = False
        self._times.append(picture.time or 0)
        if picture.frame is None:
            self._damaged.add(number)
        elif picture.is_key:
            self._keys.append(number)

    def _compare(self, number: int, picture: Picture) -> None:
        """Raise a LostError unless a picture is what was met before at this number."""
        sound = picture.frame is not None or number in self._damaged
        if picture.time != self._times[number] or not sound:
            raise LostError

    def _finish(self) -> None:
        """Note the end of the file, and warn if it comes early."""
        if self._count is None:
            self._count = len(self._times)
            times = self._times if self._ordered and self._count else None
            if times is not None and self._count > 1:
                self._fps = self._decoder.average(times)
            short = self._decoder.shortfall(None if times is None else times[-1])
            if short is not None:
                self._warn(f"{self.name} {short}; it may be cut off: get the whole file again")

    def _release(self) -> None:
        self._decoded.clear()
        self._decoder.close()
        if self._owned:
            self._file.close()
