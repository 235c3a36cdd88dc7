"""What a decoder still owes: it drops some damaged pictures without a word."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

__all__ = ["Ledger", "Picture"]


class Picture(NamedTuple):
    """Hold one frame as it comes from the decoder.

    Attributes:
        time: when it is shown, in the stream's own unit; None where the file does not say.
        frame: the decoded frame, None if it is damaged.
    """

    time: int | None
    frame: VideoFrame | None

    @property
    def is_key(self) -> bool:
        """Tell whether decoding can start here."""
        return self.frame is not None and bool(self.frame.key_frame)


class Ledger:
    """Match the packets that went into a decoder with the pictures that come out.

    Packets go in as they are stored and pictures come out as they are shown, so a picture is
    missing once a later one is out.

    Args:
        one_each: every packet makes one picture; else only those that the decoder refused count.
    """

    def __init__(self, one_each: bool) -> None:
        self._one_each = one_each
        self._awaited: list[int] = []  # a heap of times
        self._refused: set[int] = set()
        self._begun = False

    def enter(self, time: int, sound: bool) -> None:
        """Note the time of a packet, and whether the decoder took it."""
        if not sound:
            self._refused.add(time)
        if self._one_each or not sound:
            heapq.heappush(self._awaited, time)

    def settle(self, frame: VideoFrame) -> Iterator[Picture]:
        """Give the pictures that are missing before a frame, then that one."""
        time = frame.pts
        damaged = bool(frame.is_corrupt)
        if time is not None:
            yield from self._missing(time)
            if self._awaited and self._awaited[0] == time:
                # The decoder also gives what it made up of a picture that it had refused.
                damaged |= self._take() in self._refused
                self._refused.discard(time)
        self._begun = True
        yield Picture(time, None if damaged else frame)

    def close(self) -> Iterator[Picture]:
        """Give the pictures that are missing at the end."""
        return self._missing(None)

    def _missing(self, time: int | None) -> Iterator[Picture]:
        """Give what is missing before a time, or altogether."""
        while self._awaited and (time is None or self._awaited[0] < time):
            missing = self._take()
            # A clip cut out of another begins with some that lean on what is no longer there.
            if self._begun or missing in self._refused:
                yield Picture(missing, None)
            self._refused.discard(missing)

    def _take(self) -> int:
        return heapq.heappop(self._awaited)
