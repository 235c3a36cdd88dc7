"""The structure of Matroska and WebM files: a tree of elements with an id and a length."""

from __future__ import annotations

from vkrt.media.byte_layout import ChainedLayout, Element

__all__ = ["Matroska"]

SEGMENT, CLUSTER, BLOCK_GROUP = 0x18538067, 0x1F43B675, 0xA0
MASTERS = {SEGMENT, CLUSTER, BLOCK_GROUP}
BLOCKS = (0xA3, 0xA1)
# An id has up to 4 bytes, a length up to 8.
LONGEST_HEADER = 12


class Matroska(ChainedLayout):
    """Know a Matroska or WebM file."""

    has_dts = False

    def _element(self, place: int, packet: int) -> Element | None:
        head = self.read(place, LONGEST_HEADER)
        id_length = vint_length(head, 0)
        size_length = vint_length(head, id_length)
        header = id_length + size_length
        if not 1 <= id_length <= 4 or not size_length or header > len(head):
            return None
        kind = int.from_bytes(head[:id_length], "big")
        length = vint_value(head[id_length:header])
        begin = place + header
        if kind in MASTERS:
            # Of unknown length, as a live stream writes them, it ends where another one begins.
            return Element(begin, begin + (length or 0), "list")
        if length is None:
            return None
        is_frame = kind in BLOCKS and self._track(begin) in (self._track(packet), 0)
        return Element(begin, begin + length, "frame" if is_frame else "other")

    def _track(self, block: int) -> int | None:
        """Return the track that a block belongs to; 0 is none, and a sign of damage."""
        head = self.read(block, 8)
        length = vint_length(head, 0)
        return vint_value(head[:length]) if length else 0

    def _end_of(self, packet: int) -> int | None:
        before = self.read(max(packet - 9, 0), min(packet, 9))
        for length in range(1, len(before)):
            size = before[-length:]
            if before[-length - 1] in BLOCKS and vint_length(size, 0) == length:
                found = vint_value(size)
                return None if found is None else packet + found
        return None


def vint_length(head: bytes, place: int) -> int:
    """Return how many bytes the number at a place has, 0 if there is none."""
    return 9 - head[place].bit_length() if place < len(head) and head[place] else 0


def vint_value(number: bytes) -> int | None:
    """Return the value of a number without its length mark, None for "unknown"."""
    bits = 7 * len(number)
    value = int.from_bytes(number, "big") & ((1 << bits) - 1)
    return None if value == (1 << bits) - 1 else value
