"""Packets on their way to the decoder: whether they are whole, and whether some are missing."""

from __future__ import annotations

from typing import Any

from vkrt.media.byte_layout import ByteLayout
from vkrt.media.ledger import Ledger

__all__ = ["PacketWatch"]

# A packet that is flagged may be sound, and mean a break after it or after the next one.
FLAGGED = 3
# Frames that may be missing at a flag: recordings that were put together may be further apart.
LONGEST_LOSS = 50
# Bytes of a packet with its head, at least.
SMALLEST = 8


class PacketWatch:
    """Look at packets in the order they are stored, and tell a ledger of losses.

    Args:
        layout: the structure of the file; None of a camera.
        ledger: what to tell.

    Attributes:
        failed: the last thing that happened is an error of reading.
    """

    def __init__(self, layout: ByteLayout | None, ledger: Ledger) -> None:
        self._layout = layout
        self._ledger = ledger
        self._place: int | None = None
        self._time: int | None = None
        self._flagged = 0  # packets to come for which a flag counts
        self.failed = False

    def note_error(self) -> None:
        """Note that a stretch of the file could not be read."""
        self.failed = True

    def finish(self) -> None:
        """Note what is missing after the last packet."""
        if self._layout is None or self._place is None or self._time is None:
            return
        if self._layout.is_ended(self._place) is False:
            most = self._most_lost(self._layout.size(), is_joined=False)
            self._ledger.lose(self._time, self._time, most)

    def check(self, packet: Any) -> bool:
        """Return whether a packet has all its bytes, and note what is missing before it."""
        whole = self._is_whole(packet)
        time = packet.pts if packet.dts is None else packet.dts
        if time is not None and self._time is not None:
            self._note_loss(packet, self._time, time)
        self.failed = False
        self._place, self._time = packet.pos, time
        return whole

    def _note_loss(self, packet: Any, last: int, time: int) -> None:
        """Tell the ledger if packets are missing before this one."""
        step, layout = self._ledger.step, self._layout
        is_timed = layout is None or layout.is_timed
        is_late = step is not None and time - last > 1.5 * step
        if is_timed and (layout is None or layout.has_dts) and not is_late:
            return
        is_joined = not self.failed and self._is_joined(packet)
        if is_joined and not (self._flagged and is_late):
            return
        if is_timed:
            high = time if packet.pts is None else max(time, packet.pts)
            self._ledger.lose(last, high, self._most_lost(packet.pos, is_joined))
        elif packet.pts is not None:
            for index in range(self._count_lost(packet)):
                self._ledger.enter(packet.pts - 1 / (2 + index), is_key=False, sound=False)

    def _most_lost(self, place: int | None, is_joined: bool) -> int:
        """Return how many packets can be missing between the last one and a place."""
        if is_joined or place is None or self._place is None or self._layout is None:
            return LONGEST_LOSS
        return self._layout.most_lost or max(place - self._place, 0) // SMALLEST

    def _is_whole(self, packet: Any) -> bool:
        """Tell whether a packet has all its bytes."""
        self._flagged = FLAGGED if packet.is_corrupt else max(self._flagged - 1, 0)
        if not self._flagged:
            return True
        found = None
        if self._layout is not None and packet.pos is not None:
            found = self._layout.is_whole(packet.pos)
        return not packet.is_corrupt if found is None else found

    def _count_lost(self, packet: Any) -> int:
        """Return how many frames are missing before a packet whose time does not tell it."""
        if self._layout is None or self._place is None or packet.pos is None:
            return 1
        return self._layout.count_between(self._place, packet.pos)

    def _is_joined(self, packet: Any) -> bool:
        """Tell whether nothing is missing before a packet, as far as the file can tell."""
        if self._layout is None or self._place is None or packet.pos is None:
            return True
        return self._layout.is_joined(self._place, packet.pos)
