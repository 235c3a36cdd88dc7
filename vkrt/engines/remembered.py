"""What an object remembers at a frame, brought into its bank from what was kept on the host."""

from __future__ import annotations

from collections.abc import Sequence

from vkrt.engines.tracker import Tracker
from vkrt.memory.history import History

__all__ = ["load_bank", "nearest"]


def load_bank(tracker: Tracker, row: int, past: History, frame: int, reverse: bool) -> None:
    """Bring into an object's bank what it remembers at a frame, as far as it was kept.

    These are the nearest conditioning frames, and of other frames the last few as tracking goes. A
    conditioning frame that is not among the nearest counts as one of these, as upstream has it.

    Args:
        tracker: its bank is changed.
        row: the object's.
        past: what tracking left on frames.
        frame: the frame that is to be tracked.
        reverse: whether tracking goes back in time.
    """
    bank, sign = tracker.bank, 1 if reverse else -1
    nearby = nearest(past.conditioning(), frame, bank.shape.conditioning)
    recent = [frame + sign * ago for ago in range(1, bank.shape.pointers + 1)]
    told = [other for other in recent if other not in nearby]
    seen = {*nearby, *(other for other in recent[: bank.shape.recent] if other not in nearby)}
    # Whoever is not wanted, or not in this role, makes room first, so that nobody who is has to.
    bank.keep(row, seen, {*nearby, *told})
    for other in (*nearby, *told):
        bank.reclassify(row, other, other in nearby)
    for other in (*nearby, *told):
        kept, conditioning = past.settled(other), other in nearby
        if kept is None:
            continue
        if other in seen and not bank.holds(row, other):
            bank.write_memory(row, other, tracker.to_device(kept.memory), conditioning)
        if not bank.holds_pointer(row, other):
            bank.write_pointer(row, other, tracker.to_device(kept.pointer), conditioning)


def nearest(frames: Sequence[int], frame: int, count: int) -> list[int]:
    """Return the `count` frames that matter most at a frame, as SAM 2 selects them.

    These are the last before it, the first from it on, and then the closest.
    """
    before, after = [f for f in frames if f < frame], [f for f in frames if f >= frame]
    chosen = [*before[-1:], *after[:1]][:count]
    others = sorted((f for f in frames if f not in chosen), key=lambda other: abs(other - frame))
    return [*chosen, *others[: count - len(chosen)]]
