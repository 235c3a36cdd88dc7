"""What a video file's own structure says: whether bytes are missing between packets or at its end.

Timestamps can't tell damage from a pause or a long last frame; the lengths that containers state of
their parts can.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO, Literal, NamedTuple, TypeAlias

from vkrt.weights.safety_limits import MAX_INDEX_BYTES, MAX_LAYOUT_STEPS

__all__ = ["Apng", "Boxes", "ByteLayout", "Flv", "Gif", "Riff"]

Kind: TypeAlias = Literal["frame", "list", "other"]


class Element(NamedTuple):
    """Hold one element of a file.

    Attributes:
        begin: where its content begins; PyAV calls this the place of a packet.
        end: where the next element begins.
        kind: a frame of the video that is read, a list of more elements, or something else.
    """

    begin: int
    end: int
    kind: Kind


# Bytes at the end of a file in which its last mark is, whatever was put after it.
TAIL = 64
# Bytes that are read at once.
BLOCK = 4096


class ByteLayout:
    """Answer for a container of which nothing is known.

    Args:
        file: seekable; it is left where it is.

    Attributes:
        is_timed: packets have the times that the file states; else they are just counted.
        has_dts: packets state when they are decoded, which tells at once where one is missing.
        most_lost: how many frames may be missing where packets are not joined; a longer gap is one
            between recordings that were put together. None is as many as the bytes between hold.
    """

    is_timed = True
    has_dts = True
    most_lost: int | None = None

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._steps = MAX_LAYOUT_STEPS
        self._block, self._begin = b"", 0  # what was read last, and where it begins

    def spend(self) -> bool:
        """Tell whether another step may be spent on this file, and count it."""
        self._steps -= 1
        return self._steps > 0

    def is_whole(self, place: int) -> bool | None:
        """Tell whether all bytes of the packet at a place are there; None if it can't be told."""
        return None

    def is_joined(self, before: int, after: int) -> bool:
        """Tell whether nothing is missing between packets at two places, as far as can be told."""
        return True

    def count_between(self, before: int, after: int) -> int:
        """Return how many frames are missing between packets at two places that are not joined."""
        return 1

    def is_ended(self, last: int) -> bool | None:
        """Tell whether the file ends as it states, after the packet at a place; None if unknown."""
        return None

    def read(self, place: int, count: int) -> bytes:
        """Return bytes from a place of the file, which is left where it is."""
        begin = place - self._begin
        if not 0 <= begin <= len(self._block) - count:
            here = self._file.tell()
            try:
                self._file.seek(place)
                self._block, self._begin, begin = self._file.read(max(count, BLOCK)), place, 0
            finally:
                self._file.seek(here)
        return self._block[begin : begin + count]

    def size(self) -> int:
        """Return the length of the file."""
        here = self._file.tell()
        try:
            return self._file.seek(0, os.SEEK_END)
        finally:
            self._file.seek(here)


class ChainedLayout(ByteLayout):
    """Walk a file that is a chain of elements, each with its length, some with others inside."""

    def is_joined(self, before: int, after: int) -> bool:
        """Tell whether whole elements lead from one packet to the other, none of them a frame.

        A frame that is there but did not come as a packet is one whose head is damaged.
        """
        if after <= before:
            return True  # packets come in the order of an index
        for element in self._after(before):
            if element is None or element.begin > after:
                return False
            if element.begin == after:
                return True
            if element.kind == "frame":
                return False
        return self._steps <= 0

    def is_ended(self, last: int) -> bool | None:
        """Tell whether whole elements without a frame lead from a packet to the end of the file."""
        return all(element is not None and element.kind != "frame" for element in self._after(last))

    def _after(self, packet: int) -> Iterator[Element | None]:
        """Give the elements after a packet; None for one that is damaged or cut off."""
        size, place = self.size(), self._end_of(packet)
        while place != size and self.spend():
            element = None if place is None else self._element(place, packet)
            is_cut = element is not None and element.kind != "list" and element.end > size
            yield None if is_cut else element
            if element is None or is_cut:
                return
            place = element.begin if element.kind == "list" else element.end

    def _element(self, place: int, packet: int) -> Element | None:
        """Return the element at a place, None if there is no sound one.

        Args:
            packet: where a packet is whose stream is the video that is read.
        """
        raise NotImplementedError

    def _end_of(self, packet: int) -> int | None:
        """Return where the element of a packet ends, None if it has no sound one."""
        raise NotImplementedError


class Riff(ChainedLayout):
    """Know an AVI file: chunks of a name, a length and content, padded to even lengths."""

    is_timed = False
    _frames = 0
    _places: list[int] | None = None

    def _element(self, place: int, packet: int) -> Element | None:
        head = self.read(place, 8)
        if len(head) < 8 or not all(32 <= byte < 127 for byte in head[:4]):
            return None
        begin, length = place + 8, int.from_bytes(head[4:], "little")
        if head[:4] in (b"RIFF", b"LIST"):
            return Element(begin + 4, begin + length, "list")
        is_frame = length > 0 and head[2:4] in (b"dc", b"db")
        is_frame = is_frame and head[:2] == self.read(packet - 8, 2)
        return Element(begin, begin + length + length % 2, "frame" if is_frame else "other")

    def _end_of(self, packet: int) -> int | None:
        element = self._element(packet - 8, packet)
        return None if element is None else element.end

    def count_between(self, before: int, after: int) -> int:
        """Return how many frames the index has between two; one where it can't tell."""
        if self._places is None:
            self._places = self._index(self.read(before - 8, 2))
        first, last = before - 8, after - 8
        # The index counts from the begin of the file, or from that of the list of frames.
        for base in (0, self._frames):
            shifted = {place + base for place in self._places}
            if first in shifted and last in shifted:
                return sum(first < place < last for place in shifted)
        return 1

    def _index(self, stream: bytes) -> list[int]:
        """Return where the index has the frames of a stream; also note where their list begins."""
        place, size = 12, self.size()
        while place < size and self.spend():
            head = self.read(place, 12)
            length = int.from_bytes(head[4:8], "little")
            if head[:4] == b"LIST" and head[8:12] == b"movi":
                self._frames = place + 8
            if head[:4] == b"idx1" and length <= MAX_INDEX_BYTES:
                entries = self.read(place + 8, length)
                return [
                    int.from_bytes(entries[at + 8 : at + 12], "little")
                    for at in range(0, len(entries) - 15, 16)
                    if entries[at : at + 2] == stream and any(entries[at + 12 : at + 16])
                ]
            place += 8 + length + length % 2
        return []

    def is_ended(self, last: int) -> bool | None:
        """Tell whether the file is as long as its lists state; what is not filled in is unknown."""
        place, size = 0, self.size()
        while place < size and self.spend():
            head = self.read(place, 8)
            if head[:4] != b"RIFF":
                return True  # what follows the last list is nobody's
            length = int.from_bytes(head[4:], "little")
            if length == 0:
                return None
            place += 8 + length
        return place <= size + 1


class Boxes(ByteLayout):
    """Know a file of the MP4 family: boxes of a length, a name and content."""

    def is_ended(self, last: int) -> bool | None:
        """Tell whether the last box is as long as it states."""
        place, size = 0, self.size()
        while self.spend():
            if place >= size:
                return place == size
            head = self.read(place, 16)
            length = int.from_bytes(head[:4], "big")
            if length == 1:
                length = int.from_bytes(head[8:16], "big")
            if length < 8:
                # 0 is "to the end"; what else is shorter than its header is no box, but padding.
                return True
            place += length
        return None


class Flv(ChainedLayout):
    """Know an FLV file: tags of a kind, a length and content, and the length again."""

    def _element(self, place: int, packet: int) -> Element | None:
        head = self.read(place, 13)
        if len(head) < 11 or head[0] & 0x1F not in (8, 9, 18):
            return None
        length = int.from_bytes(head[1:4], "big")
        is_frame = head[0] & 0x1F == 9 and len(head) > 12 and not is_note(head[11:])
        # PyAV calls the begin of the tag its place.
        return Element(place, place + length + 15, "frame" if is_frame else "other")

    def _end_of(self, packet: int) -> int | None:
        element = self._element(packet, packet)
        return None if element is None else element.end


class Gif(ByteLayout):
    """Know a GIF: its last byte is a semicolon."""

    def is_ended(self, last: int) -> bool | None:
        """Tell whether the file has its end."""
        return self.read(max(self.size() - TAIL, 0), TAIL).rstrip(b"\0").endswith(b";")


class Apng(ByteLayout):
    """Know a PNG: its last chunk is IEND."""

    def is_ended(self, last: int) -> bool | None:
        """Tell whether the file has its end."""
        return b"IEND" in self.read(max(self.size() - TAIL, 0), TAIL)


def is_note(head: bytes) -> bool:
    """Tell whether a video tag of an FLV tells of the stream, and holds no frame of it."""
    if head[0] & 0x80:
        return head[0] & 0x0F in (0, 2, 4)
    return head[0] & 0x0F in (7, 12) and head[1] in (0, 2)
