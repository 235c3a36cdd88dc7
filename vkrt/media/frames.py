"""Frames: what every source of moving pictures offers, whatever they come from."""

from __future__ import annotations

import operator
import warnings
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from itertools import count as count_up
from types import TracebackType
from typing import Literal, TypeAlias, get_args

import numpy as np

from vkrt.errors import VideoError
from vkrt.forks import HomeLock
from vkrt.media.image import to_input

__all__ = ["CACHE", "Damage", "Frames", "OnError"]

OnError: TypeAlias = Literal["raise", "skip"]

# Enough for going backwards a little; at 1920x1080 it is 50 MB.
CACHE = 8


class Damage(Exception):
    """Say of one frame that it can't be read, and why: "is damaged (...)"."""


class Frames(ABC):
    """Frames of one size, read when asked for: iterate over them, or take one by its number.

    Frames count from 0. Each is (H, W, 3) uint8 RGB, upright, contiguous and read-only, for it may
    be given again. At most `cache` of them are held, however long the source is. Threads may share
    one object.

    Args:
        name: what errors call the source.
        cache: how many frames to hold.
        on_error: what a frame that can't be read does: "raise" a VideoError that names it, or
            "skip", which gives the frame before it again and warns once.

    Attributes:
        name: as given.

    Raises:
        VideoError: no frame may be held, or there is no such policy.
    """

    def __init__(self, name: str, cache: int = CACHE, on_error: OnError = "raise") -> None:
        if cache < 1:
            raise VideoError(f"a cache can't hold {cache} frames; give 1 or more")
        if on_error not in get_args(OnError):
            raise VideoError(f"on_error can't be {on_error!r}; give 'raise' or 'skip'")
        self.name = name
        self._capacity = cache
        self._on_error = on_error
        self._held: OrderedDict[int, np.ndarray] = OrderedDict()
        self._count: int | None = None
        self._size: tuple[int, int] | None = None
        self._fps: float | None = None
        self._lock = HomeLock("opened the clip")
        self._closed = False
        self._warned = False

    @property
    def count(self) -> int | None:
        """Return how many frames there are, None until that is known for certain."""
        return self._count

    @property
    def expected(self) -> int | None:
        """Return how many frames to expect, for a progress bar: count, or what the file claims."""
        return self._count

    @property
    def size(self) -> tuple[int, int] | None:
        """Return height and width, None until the first frame was read."""
        return self._size

    @property
    def fps(self) -> float | None:
        """Return frames a second, on average; None where the source does not say."""
        return self._fps

    def frame(self, index: int) -> np.ndarray:
        """Return one frame, (H, W, 3) uint8.

        Raises:
            VideoError: the clip has no such frame, it is damaged or of another size than the
                first, a live source has moved past it, or the source was closed.
        """
        place = self._check(index)
        pixels = self._get(place)
        if pixels is None:
            raise VideoError(
                f"{self.name} has no frame {place}, only {self._count}; give a number from 0 to "
                f"{(self._count or 1) - 1}"
            )
        return pixels

    def input(self, index: int, side: int, threads: int | None = None) -> np.ndarray:
        """Return one frame as a network's input, (3, side, side) float32.

        It is resized as SAM 2's own code resizes frames of such a source; see to_input.

        Args:
            index: the frame's number.
            side: of the square, in pixels.
            threads: CPU threads; None is one per core.

        Raises:
            VideoError: as frame.
        """
        with self._lock:
            return self._to_input(self._check(index), self.frame(index), side, threads)

    def has(self, index: int) -> bool:
        """Tell whether there is a frame of a number, reading it where that is not known yet.

        Raises:
            VideoError: as frame, but for a clip that ends before it.
        """
        known = self._count
        return index < known if known is not None else self._get(self._check(index)) is not None

    def length(self) -> int:
        """Return the number of frames, reading the source to its end where it is not known yet.

        Raises:
            VideoError: only reading the frames themselves can tell, or the source was closed.
        """
        with self._lock:
            self._check(0)
            return self._measure() if self._count is None else self._count

    def close(self) -> None:
        """Release the file and the frames; doing it twice is fine."""
        if not self._lock.home.is_here:
            return
        with self._lock:
            if not self._closed:
                self._closed = True
                self._held.clear()
                self._release()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Give the frames in order."""
        for index in count_up():
            pixels = self._get(index)
            if pixels is None:
                return
            yield pixels

    def __enter__(self) -> Frames:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @abstractmethod
    def _load(self, index: int) -> np.ndarray | None:
        """Return a frame that is not held, None if the source ends before it; then set _count.

        Raises:
            Damage: the frame can't be read.
            VideoError: the frame can't be had any more.
        """

    def _to_input(
        self, index: int, photo: np.ndarray, side: int, threads: int | None
    ) -> np.ndarray:
        """Return a frame that was just read as a network's input."""
        return to_input(photo, side, threads=threads)

    def _measure(self) -> int:
        """Return the number of frames where it is not known yet."""
        raise VideoError(f"{self.name} tells its length only at its end; read its frames first")

    def _release(self) -> None:  # noqa: B027, since many sources hold nothing open
        """Close what is open."""

    def _check(self, index: int) -> int:
        """Return a frame's number as int, once it is clear that it can be one."""
        if self._closed:
            raise VideoError(f"{self.name} was closed; open it again")
        try:
            place = operator.index(index)
        except TypeError:
            place = -1
        if place < 0:
            raise VideoError(f"a frame's number can't be {index!r}; frames count from 0")
        return place

    def _get(self, index: int) -> np.ndarray | None:
        """Return a frame, None past the end."""
        with self._lock:
            self._check(index)
            if index in self._held:
                self._held.move_to_end(index)
                return self._held[index]
            if self._count is not None and index >= self._count:
                return None
            try:
                pixels = self._load(index)
            except Damage as damage:
                pixels = self._replace(index, damage)
            return None if pixels is None else self._hold(index, pixels)

    def _hold(self, index: int, pixels: np.ndarray) -> np.ndarray:
        """Return a frame that has the size of the others, held and read-only."""
        size = pixels.shape[0], pixels.shape[1]
        if self._size is None:
            self._size = size
        if size != self._size:
            height, width = self._size
            raise VideoError(
                f"frame {index} of {self.name} is {size[1]}x{size[0]}, but the first is "
                f"{width}x{height}; scale all frames to one size first"
            )
        view = pixels.view()
        view.flags.writeable = False
        self._held[index] = view
        self._held.move_to_end(index)
        while len(self._held) > self._capacity:
            self._held.popitem(last=False)
        return view

    def _replace(self, index: int, damage: Damage) -> np.ndarray:
        """Return what stands for a damaged frame: the last sound one before it."""
        told = f"frame {index} of {self.name} {damage}"
        if self._on_error == "raise":
            raise VideoError(
                f"{told}; get the whole clip again, or repeat the frame before it with "
                "on_error='skip'"
            ) from None
        for earlier in range(index - 1, -1, -1):
            try:
                found = self._held.get(earlier)
                found = self._load(earlier) if found is None else found
            except Damage:
                continue
            if found is not None:
                self._warn(f"{told}; the frame before it stands in for it, and so on from here")
                return found
        raise VideoError(f"{told} and none before it is sound; cut it off the clip first") from None

    def _warn(self, text: str) -> None:
        """Warn of damage, the first time only."""
        if not self._warned:
            self._warned = True
            warnings.warn(text, RuntimeWarning, stacklevel=2)
