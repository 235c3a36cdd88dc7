"""What a decoder still owes: it drops some damaged pictures without a word."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from vkrt.weights.safety_limits import MAX_AWAITED_FRAMES, MAX_LOST_FRAMES

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

__all__ = ["Ledger", "Picture"]

# How many pictures a decoder may hold back to bring them in order.
REORDERED = 16
# After damage a decoder gives pictures out of order: so many are kept to see whether one that is
# missing still comes.
PATIENCE = 8
# Stretches of rising times that a decoder may have begun at once.
MOST_PARTS = 64


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


class Loss(NamedTuple):
    """Hold between which times packets were lost before they came to the decoder.

    Attributes:
        low, high: times of the packets around it.
        most: how many can be lost; a longer gap has another reason.
    """

    low: int
    high: int
    most: int


class Part:
    """Hold what is known of one stretch of rising times; clips put together have several.

    Attributes:
        awaited: times of packets whose pictures did not come out yet, and whether they were sound.
        held: a heap of pictures that came out, while an earlier one may still come.
        top: the latest time of a packet.
        last: the time of the last picture that was given.
        told: the last times that were given as missing.
    """

    def __init__(self) -> None:
        self.awaited: dict[float, bool] = {}
        self.held: list[tuple[int, int, VideoFrame | None]] = []
        self.top: float | None = None
        self.last: float | None = None
        self.told: deque[float] = deque(maxlen=4 * REORDERED)

    def is_over(self, time: float, is_key: bool) -> bool:
        """Tell whether a packet with a time begins another part.

        Within one, what is decoded after a picture was shown is shown after it, and a keyframe is
        shown after all that is stored before it.
        """
        if self.top is None:
            return False
        return (is_key and time <= self.top) or (self.last is not None and time <= self.last)

    def enter(self, time: float, sound: bool) -> None:
        """Await a picture."""
        if len(self.awaited) >= MAX_AWAITED_FRAMES:
            del self.awaited[next(iter(self.awaited))]
        self.awaited[time] = sound
        self.top = time if self.top is None else max(self.top, time)

    def before(self, time: float | None) -> list[float]:
        """Return the times that are awaited before one, or all."""
        return sorted(each for each in self.awaited if time is None or each < time)


class Ledger:
    """Match the packets that went into a decoder with the pictures that come out.

    Packets go in as they are stored and pictures come out as they are shown, so a picture is
    missing once later ones are out. Where times start anew, pictures are matched part by part.

    Args:
        one_each: every packet makes one picture; else only those that the decoder refused count.
        duration: how long a picture is shown, in the stream's unit, on average; None if unknown.
        halves: a packet may hold half a picture, one of its two fields.
    """

    def __init__(self, one_each: bool, duration: float | None = None, halves: bool = False) -> None:
        self._one_each = one_each
        self._duration = duration
        self._halves = halves
        self._parts = deque([Part()])
        self._losses: deque[Loss] = deque()
        self._given = 0  # pictures that came out of the decoder
        self._lost = 0  # pictures that did not come to the decoder
        self._shortest = math.inf  # between two pictures in order

    @property
    def step(self) -> float | None:
        """Return how long a picture is shown where a clip is quickest, None if unknown."""
        # Times that are rounded to a file's unit make single ones a little shorter.
        is_steady = self._duration is not None and self._shortest > 0.8 * self._duration
        return self._duration if is_steady or self._shortest == math.inf else self._shortest

    def enter(self, time: float, is_key: bool, sound: bool) -> None:
        """Note the time of a packet, and whether the decoder took it."""
        if self._parts[-1].is_over(time, is_key):
            self._parts.append(Part())
            if len(self._parts) > MOST_PARTS:
                self._parts.popleft()
        self._parts[-1].enter(time, sound)

    def lose(self, low: int, high: int, most: int) -> None:
        """Note that some packets were lost between two times: a gap in the pictures is damage."""
        self._losses.append(Loss(low, high, most))

    def settle(self, frame: VideoFrame) -> Iterator[Picture]:
        """Take a frame, and give what is settled by it: pictures in order, with the missing ones.

        Frames come at once as long as nothing is missing.
        """
        time = frame.pts
        if time is None:
            yield Picture(None, None if frame.is_corrupt else frame)
            return
        yield from self._turn_to(time)
        part = self._parts[0]
        if time in part.told:
            return  # too late: its place is taken
        # The decoder also gives what it made up of a picture that it had refused.
        damaged = not part.awaited.pop(time, True) or bool(frame.is_corrupt)
        self._given += 1
        heapq.heappush(part.held, (time, self._given, None if damaged else frame))
        yield from self._release(part, PATIENCE)

    def close(self) -> Iterator[Picture]:
        """Give the pictures that are missing at the end."""
        for part in self._parts:
            yield from self._end(part)

    def _turn_to(self, time: int) -> Iterator[Picture]:
        """Leave the parts before the one that has a time, once one has it."""
        if len(self._parts) > 1 and any(time in part.awaited for part in self._parts):
            while time not in self._parts[0].awaited:
                yield from self._end(self._parts.popleft())

    def _end(self, part: Part) -> Iterator[Picture]:
        """Give what is held and what is missing of a part that is over."""
        yield from self._release(part, 0)
        for missing in self._missing(part, None):
            yield Picture(math.floor(missing), None)

    def _release(self, part: Part, patience: int) -> Iterator[Picture]:
        """Give the pictures that nothing may come before, and all beyond so many."""
        while part.held:
            time, _, frame = part.held[0]
            if len(part.held) <= patience and self._may_come(part, time):
                return
            heapq.heappop(part.held)
            missing = self._missing(part, time)
            missing += self._gap(part.last, time, missing)
            for each in sorted(missing):
                yield Picture(math.floor(each), None)
            part.told.extend(missing)
            if part.last is not None and not missing and time > part.last:
                self._shortest = min(self._shortest, time - part.last)
            part.last = time if part.last is None else max(part.last, time)
            yield Picture(time, frame)

    def _may_come(self, part: Part, time: int) -> bool:
        """Tell whether a picture before a time is awaited that the decoder took."""
        return any(
            part.awaited[each] and self._counts(part, each, time, True)
            for each in part.before(time)
        )

    def _missing(self, part: Part, time: float | None) -> list[float]:
        """Return the times that are missing of a part before one, or altogether; forget them."""
        return [
            each
            for each in part.before(time)
            if self._counts(part, each, time, part.awaited.pop(each))
        ]

    def _counts(self, part: Part, missing: float, time: float | None, sound: bool) -> bool:
        """Tell whether a packet without a picture is one that is lost."""
        # A clip cut out of another begins with some that lean on what is no longer there.
        if sound and (part.last is None or not self._one_each):
            return False
        if not self._halves or self._duration is None:
            return True
        # The second half of a picture is not missing if the first one came out.
        near = [each for each in (part.last, time) if each is not None]
        return all(abs(missing - each) > 0.75 * self._duration for each in near)

    def _gap(self, last: float | None, time: int, known: list[float]) -> list[float]:
        """Return the times of the pictures between two that were lost on the way to the decoder."""
        step = self.step
        if last is None or step is None or not step > 0 or not self._is_loss(last, time, step):
            return []
        count = min(round((time - last) / step), MAX_LOST_FRAMES - self._lost)
        self._lost += max(count - 1, 0)
        slots = [last + index * (time - last) / count for index in range(1, count)]
        return [slot for slot in slots if all(abs(slot - each) > step / 2 for each in known)]

    def _is_loss(self, last: float, time: int, step: float) -> bool:
        """Tell whether packets were lost between two pictures; forget the losses before them."""
        while self._losses and self._losses[0].high + REORDERED * step < last:
            self._losses.popleft()
        return time - last > 1.5 * step and any(
            loss.low - REORDERED * step <= time
            and last <= loss.high + REORDERED * step
            and (time - last) / step < loss.most + 1.5
            for loss in self._losses
        )
