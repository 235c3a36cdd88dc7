"""Slots, the memory bank and the history: against plain references without any bound."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vkrt.backends.fake import FakeBackend
from vkrt.memory.bank import BankShape, MemoryBank, Recall
from vkrt.memory.history import History, Past
from vkrt.memory.slots import EMPTY, Slots

SHAPE = BankShape(pixels=3, mem_dim=2, pointer_dim=4, conditioning=2, recent=6, pointers=15)
SPAN = 16


def memory_of(row: int, frame: int) -> np.ndarray:
    """Return a memory that says whose it is."""
    return np.full((SHAPE.pixels, SHAPE.mem_dim), 1000 * row + frame, np.float32)


def pointer_of(row: int, frame: int) -> np.ndarray:
    return np.full(SHAPE.pointer_dim, 1000 * row + frame, np.float32)


def bank_of(rows: int, shape: BankShape = SHAPE) -> MemoryBank:
    bank = MemoryBank(FakeBackend(), shape)
    for _ in range(rows):
        bank.add()
    return bank


def write(bank: MemoryBank, row: int, frame: int, conditioning: bool) -> None:
    bank.write(row, frame, memory_of(row, frame), pointer_of(row, frame), conditioning)


def seen(recall: Recall, index: int, row: int) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """Return what takes part for one object: (frame, age) of memories, (frame, ago) of pointers."""
    memories = {
        (int(memory[0, 0]) - 1000 * row, int(age))
        for memory, age in zip(recall.memories[index], recall.ages[index], strict=True)
        if age >= 0
    }
    pointers = {
        (int(pointer[0]) - 1000 * row, round(float(offset) * (SPAN - 1)))
        for pointer, offset, there in zip(
            recall.pointers[index], recall.offsets[index], recall.present[index], strict=True
        )
        if there
    }
    return memories, pointers


@dataclass
class Unbounded:
    """Keep everything, and select as SAM 2 does (sam2_base, _prepare_memory_conditioned_features).

    Attributes:
        frames: whether each frame that was written is a conditioning one.
    """

    frames: dict[int, bool] = field(default_factory=dict)

    def at(self, frame: int, reverse: bool) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
        sign = -1 if reverse else 1
        ago = {f: sign * (frame - f) for f in self.frames}
        memories = {(f, 0) for f, prompted in self.frames.items() if prompted}
        memories |= {(f, ago[f]) for f, p in self.frames.items() if not p and 1 <= ago[f] <= 6}
        pointers = {(f, ago[f]) for f, p in self.frames.items() if p and ago[f] >= 0}
        pointers |= {(f, ago[f]) for f, p in self.frames.items() if not p and 1 <= ago[f] < SPAN}
        return memories, pointers


@pytest.mark.parametrize("reverse", [False, True])
def test_forty_frames_equal_an_unbounded_bank(reverse: bool) -> None:
    bank, reference = bank_of(2), (Unbounded(), Unbounded())
    frames = range(39, -1, -1) if reverse else range(40)
    begins = {0: frames[0], 1: frames[4]}
    for frame in frames:
        rows = [
            row
            for row in (0, 1)
            if row in (0, 1) and (frame - begins[row]) * (-1 if reverse else 1) > 0
        ]
        if rows:
            recall = bank.recall(rows, frame, reverse, SPAN)
            for index, row in enumerate(rows):
                assert seen(recall, index, row) == reference[row].at(frame, reverse)
        for row in (*rows, *(row for row, first in begins.items() if first == frame)):
            prompted = frame in (begins[row], frames[20])
            write(bank, row, frame, prompted)
            reference[row].frames[frame] = prompted


def test_every_slot_is_used_again_in_place() -> None:
    bank = bank_of(1)
    before = bank._memories
    for frame in range(100):
        write(bank, 0, frame, conditioning=frame == 0)
    assert bank._memories is before
    slots = bank._memory_slots[0]
    assert slots.used == 7 and set(slots.frames[:7]) == {0, *range(94, 100)}


def test_beyond_the_limit_the_farthest_conditioning_frame_gives_way() -> None:
    bank = bank_of(1)
    for frame in (0, 50, 60):
        write(bank, 0, frame, conditioning=True)
    memories, _ = seen(bank.recall([0], 61, False, SPAN), 0, 0)
    assert memories == {(50, 0), (60, 0)}


def test_a_tracked_frame_that_is_prompted_changes_its_kind() -> None:
    bank = bank_of(1)
    write(bank, 0, 0, conditioning=True)
    for frame in (1, 2, 3):
        write(bank, 0, frame, conditioning=False)
    write(bank, 0, 2, conditioning=True)
    memories, _ = seen(bank.recall([0], 4, False, SPAN), 0, 0)
    assert memories == {(0, 0), (2, 0), (1, 3), (3, 1)}
    bank.forget(0, 2)
    memories, _ = seen(bank.recall([0], 4, False, SPAN), 0, 0)
    assert memories == {(0, 0), (1, 3), (3, 1)} and not bank.holds(0, 2)


def test_the_bytes_are_those_stated() -> None:
    for rows in (0, 1, 3):
        bank = bank_of(rows)
        held = bank._memories.nbytes + bank._pointers.nbytes if rows else 0
        assert bank.nbytes == held == rows * SHAPE.bytes_per_object


def test_removing_an_object_keeps_the_others() -> None:
    bank = bank_of(3)
    for row in range(3):
        write(bank, row, 5 + row, conditioning=True)
    bank.remove(1)
    assert bank.rows == 2
    recall = bank.recall([0, 1], 9, False, SPAN)
    assert seen(recall, 0, 0)[0] == {(5, 0)} and seen(recall, 1, 2)[0] == {(7, 0)}
    bank.clear()
    assert bank.rows == 0 and bank.nbytes == 0


def test_an_object_without_memories_gives_numbers_that_take_no_part() -> None:
    bank = bank_of(2)
    write(bank, 0, 0, conditioning=True)
    recall = bank.recall([0, 1], 1, False, SPAN)
    assert not (recall.ages[1] >= 0).any() and not recall.present[1].any()
    assert np.isfinite(recall.memories).all() and np.isfinite(recall.pointers).all()


def test_a_clip_of_one_frame_has_no_distance_to_divide_by() -> None:
    bank = bank_of(1)
    write(bank, 0, 0, conditioning=True)
    assert bank.recall([0], 0, False, span=1).offsets.tolist() == [[0.0]]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=1, max_size=60),
    st.integers(1, 3),
    st.integers(1, 6),
)
def test_slots_keep_to_their_limits(
    writes: list[tuple[int, bool]], conditioning: int, recent: int
) -> None:
    slots = Slots(conditioning, recent)
    for frame, prompted in writes:
        slot = slots.place(frame, prompted)
        assert slots.frames[slot] == frame and slots.conditioning[slot] == prompted
        held = slots.frames != EMPTY
        assert len(set(slots.frames[held])) == held.sum()
        assert (held & slots.conditioning).sum() <= conditioning
        assert (held & ~slots.conditioning).sum() <= recent
        assert slots.used <= conditioning + recent


def past(conditioning: bool) -> Past:
    nothing = np.zeros((1, 1), np.float32)
    return Past(nothing, 0.5, 1.0, nothing, nothing[0], conditioning)


def test_the_history_keeps_prompted_frames_and_so_many_others() -> None:
    history = History(3)
    history.put(0, past(True))
    for frame in range(1, 10):
        history.put(frame, past(False))
        assert len(history) == 1 + min(frame, 3)
    assert history.conditioning() == [0]
    assert {0, 9} <= set(history)
    history.forget(9)
    history.forget(9)
    assert history.get(9) is None and len(history) == 3


def test_the_history_keeps_what_is_near_a_prompt_and_near_the_present() -> None:
    history = History(20)
    history.put(0, past(True))
    for frame in range(1, 200):
        history.put(frame, past(False))
    kept = set(history)
    assert set(range(8)) <= kept and set(range(192, 200)) <= kept and len(kept) == 21
