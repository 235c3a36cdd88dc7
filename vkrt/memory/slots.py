"""Which frame each slot of a fixed number holds: written in place, never moved."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

__all__ = ["EMPTY", "Slots"]

# Stands for "no frame"; no clip reaches back so far.
EMPTY = np.iinfo(np.int64).min


class Slots:
    """Give frames slots, in two kinds with a limit each: conditioning frames and recent ones.

    A kind that is full gives the new frame the slot of its own frame that is farthest away in
    time. Slots are taken from the first on, so that the used ones stay together.

    Attributes:
        frames: (slots,) int64, the frame in each slot, EMPTY where there is none.
        conditioning: (slots,) bool, whether that frame was prompted.
    """

    def __init__(self, conditioning: int, recent: int) -> None:
        self._limits = {True: conditioning, False: recent}
        self.frames = np.full(conditioning + recent, EMPTY, np.int64)
        self.conditioning = np.zeros(conditioning + recent, bool)

    @property
    def used(self) -> int:
        """Return the number of slots up to the last that holds a frame."""
        held = np.flatnonzero(self.frames != EMPTY)
        return int(held[-1]) + 1 if len(held) else 0

    def find(self, frame: int) -> int | None:
        """Return the slot that holds a frame, or None."""
        (held,) = np.nonzero(self.frames == frame)
        return int(held[0]) if len(held) else None

    def place(self, frame: int, conditioning: bool) -> int:
        """Give a frame a slot and return it; a frame that has one keeps it if its kind allows."""
        held = self.find(frame)
        if held is not None:
            self.frames[held] = EMPTY
        (same,) = np.nonzero((self.frames != EMPTY) & (self.conditioning == conditioning))
        if len(same) >= self._limits[conditioning]:
            slot = int(same[np.abs(self.frames[same] - frame).argmax()])
        elif held is not None:
            slot = held
        else:
            slot = int(np.flatnonzero(self.frames == EMPTY)[0])
        self.frames[slot], self.conditioning[slot] = frame, conditioning
        return slot

    def forget(self, frame: int) -> None:
        """Empty the slot of a frame, if it has one."""
        self.frames[self.frames == frame] = EMPTY

    def keep(self, frames: Collection[int]) -> None:
        """Empty the slots of all frames but these."""
        self.frames[~np.isin(self.frames, list(frames))] = EMPTY

    def distances(self, frame: int, reverse: bool) -> np.ndarray:
        """Return (slots,) int64: how many frames ago each slot's frame was, as tracking goes.

        A frame still to come has a negative distance; that of an empty slot means nothing.
        """
        sign = -1 if reverse else 1
        return np.where(self.frames == EMPTY, 0, sign * (frame - self.frames))
