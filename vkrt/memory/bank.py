"""The memory bank of tracked objects: a fixed number of slots for each, written in place."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vkrt.memory.slots import EMPTY, Slots

__all__ = ["BankShape", "MemoryBank", "Recall"]

FLOAT_BYTES = 4


class Allocator(Protocol):
    """Make arrays of a device, and bring others there."""

    def empty(self, shape: tuple[int, ...], dtype: str = "float32") -> Any:
        """Return an uninitialized array."""
        ...

    def from_host(self, array: np.ndarray) -> Any:
        """Return the array of a host array."""
        ...


@dataclass(frozen=True)
class BankShape:
    """State what an object's share of a bank is.

    Attributes:
        pixels: positions of a memory.
        mem_dim: channels of a memory.
        pointer_dim: channels of an object pointer.
        conditioning: prompted frames that are kept; beyond them the farthest in time gives way.
        recent: tracked frames whose memory is kept.
        pointers: tracked frames whose object pointer is kept.
    """

    pixels: int
    mem_dim: int
    pointer_dim: int
    conditioning: int = 4
    recent: int = 6
    pointers: int = 15

    @property
    def bytes_per_object(self) -> int:
        """Return the bytes that every object takes, however long it is tracked."""
        memories = (self.conditioning + self.recent) * self.pixels * self.mem_dim
        pointers = (self.conditioning + self.pointers) * self.pointer_dim
        return FLOAT_BYTES * (memories + pointers)


@dataclass(frozen=True)
class Recall:
    """Hold what memory attention reads for some objects: device arrays, as its ports name them."""

    memories: Any
    ages: Any
    pointers: Any
    offsets: Any
    present: Any


class MemoryBank:
    """Keep memories and object pointers of any number of objects, a row each.

    Nothing is ever moved for the sake of order: attention does not care about it, and each
    slot's age is told beside it (SAM 2 paper, section 4). Memory grows with the rows alone.
    """

    def __init__(self, allocator: Allocator, shape: BankShape) -> None:
        self.shape = shape
        self._allocator = allocator
        self._memory_slots: list[Slots] = []
        self._pointer_slots: list[Slots] = []
        self._memories: Any = None
        self._pointers: Any = None

    @property
    def rows(self) -> int:
        """Return the number of objects."""
        return len(self._memory_slots)

    @property
    def nbytes(self) -> int:
        """Return the bytes of all arrays."""
        return self.rows * self.shape.bytes_per_object

    def duplicate(self) -> MemoryBank:
        """Return a bank that holds the same, in arrays of its own."""
        twin = MemoryBank.__new__(MemoryBank)
        twin.__dict__.update(self.__dict__)
        twin._memory_slots = deepcopy(self._memory_slots)
        twin._pointer_slots = deepcopy(self._pointer_slots)
        # Makes the arrays anew.
        twin._resize(range(self.rows))
        return twin

    def add(self) -> int:
        """Add an object without memories; return its row."""
        self._resize([*range(self.rows), None])
        return self.rows - 1

    def remove(self, row: int) -> None:
        """Remove an object; the rows behind it move up by one."""
        self._resize([r for r in range(self.rows) if r != row])

    def clear(self) -> None:
        """Remove every object."""
        self._resize([])

    def _resize(self, kept: Sequence[int | None]) -> None:
        """Make the arrays anew, each row that of an old one or empty."""
        shape = self.shape
        total = shape.conditioning + shape.recent
        memories = self._zeros(len(kept), total, shape.pixels, shape.mem_dim)
        pointers = self._zeros(len(kept), shape.conditioning + shape.pointers, shape.pointer_dim)
        for new, old in enumerate(kept):
            if old is not None:
                memories[new] = self._memories[old]
                pointers[new] = self._pointers[old]
        self._memory_slots = [
            Slots(shape.conditioning, shape.recent) if old is None else self._memory_slots[old]
            for old in kept
        ]
        self._pointer_slots = [
            Slots(shape.conditioning, shape.pointers) if old is None else self._pointer_slots[old]
            for old in kept
        ]
        self._memories, self._pointers = memories, pointers

    def _zeros(self, *shape: int) -> Any:
        # What attention leaves out is still multiplied by zero, so that it must be a number.
        made = self._allocator.empty(shape)
        made[...] = 0
        return made

    def write(self, row: int, frame: int, memory: Any, pointer: Any, conditioning: bool) -> None:
        """Keep what one object left on a frame, in place of what it had there.

        Args:
            row: the object's.
            frame: index of the frame.
            memory: (pixels, mem_dim) device array.
            pointer: (pointer_dim,) device array.
            conditioning: whether later frames are conditioned on it.
        """
        self.write_memory(row, frame, memory, conditioning)
        self.write_pointer(row, frame, pointer, conditioning)

    def write_memory(self, row: int, frame: int, memory: Any, conditioning: bool) -> None:
        """Keep a memory alone."""
        self._memories[row, self._memory_slots[row].place(frame, conditioning)] = memory

    def write_pointer(self, row: int, frame: int, pointer: Any, conditioning: bool) -> None:
        """Keep an object pointer alone."""
        self._pointers[row, self._pointer_slots[row].place(frame, conditioning)] = pointer

    def holds(self, row: int, frame: int) -> bool:
        """Tell whether the memory of a frame is there."""
        return self._memory_slots[row].find(frame) is not None

    def holds_pointer(self, row: int, frame: int) -> bool:
        """Tell whether the pointer of a frame is there."""
        return self._pointer_slots[row].find(frame) is not None

    def reclassify(self, row: int, frame: int, conditioning: bool) -> None:
        """Drop what a frame left if it is there as a frame of the other kind."""
        for slots in (self._memory_slots[row], self._pointer_slots[row]):
            held = slots.find(frame)
            if held is not None and slots.conditioning[held] != conditioning:
                slots.forget(frame)

    def forget(self, row: int, frame: int) -> None:
        """Drop what an object left on a frame."""
        self._memory_slots[row].forget(frame)
        self._pointer_slots[row].forget(frame)

    def keep(self, row: int, memories: Collection[int], pointers: Collection[int]) -> None:
        """Drop what an object left on all frames but these."""
        self._memory_slots[row].keep(memories)
        self._pointer_slots[row].keep(pointers)

    def recall(self, rows: Sequence[int], frame: int, reverse: bool, span: int) -> Recall:
        """Return what objects remember at a frame.

        Args:
            rows: the objects'.
            frame: the frame that is to be tracked.
            reverse: whether tracking goes back in time.
            span: object pointers that take part, the frame's own one counted: distances are given
                as shares of span - 1 (SAM 2 has the smaller of 16 and the clip's length).
        """
        of_memories = [self._memory_slots[row] for row in rows]
        of_pointers = [self._pointer_slots[row] for row in rows]
        slots = max(1, *(slots.used for slots in of_memories))
        tokens = max(1, *(slots.used for slots in of_pointers))
        ages = np.stack([self._ages(s, frame, reverse)[:slots] for s in of_memories])
        since = [pointer_distances(s, frame, reverse, span)[:tokens] for s in of_pointers]
        distances = np.stack(since)
        present = distances >= 0
        offsets = np.where(present, distances, 0) / max(span - 1, 1)
        whole = list(rows) == list(range(self.rows))
        memories = self._memories if whole else self._memories[list(rows)]
        pointers = self._pointers if whole else self._pointers[list(rows)]
        give = self._allocator.from_host
        return Recall(
            memories=memories[:, :slots],
            ages=give(ages.astype(np.int32)),
            pointers=pointers[:, :tokens],
            offsets=give(offsets.astype(np.float32)),
            present=give(present.astype(np.int32)),
        )

    def _ages(self, slots: Slots, frame: int, reverse: bool) -> np.ndarray:
        """Return 0 for a conditioning frame, how many frames ago for a recent one, else -1."""
        ago = slots.distances(frame, reverse)
        recent = np.where((ago >= 1) & (ago <= self.shape.recent), ago, -1)
        return np.where(slots.frames == EMPTY, -1, np.where(slots.conditioning, 0, recent))


def pointer_distances(slots: Slots, frame: int, reverse: bool, span: int) -> np.ndarray:
    """Return how many frames ago each pointer's frame was; -1 where it takes no part.

    Those of conditioning frames count however old they are, but none of frames still to come.
    """
    ago = slots.distances(frame, reverse)
    counts = np.where(slots.conditioning, ago >= 0, (ago >= 1) & (ago < span))
    return np.where((slots.frames != EMPTY) & counts, ago, -1)
