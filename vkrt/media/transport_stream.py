"""The structure of MPEG transport streams: packets of 188 bytes, numbered stream by stream."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from vkrt.media.byte_layout import ByteLayout

__all__ = ["TransportStream"]

SYNC = 0x47
PACKET = 188
# With four bytes of time before each, as camcorders and Blu-ray discs write them.
TIMED = 192
PROGRAMS = 0  # the stream that names the programs, which begins every recording
BATCH = 512  # packets that are read at once


class TransportStream(ByteLayout):
    """Know a transport stream.

    A break in the numbering is a loss, or a place where recordings were put together. FFmpeg flags
    a packet near it either way; whether a frame lost bytes is told by its own packets: they are
    numbered without a gap, and the last one has stuffing, which ends the frame.
    """

    most_lost = 50

    def is_whole(self, place: int) -> bool | None:
        """Tell whether the packets from a place on make a whole frame; None if none is there."""
        stride = self._stride(place)
        if stride is None:
            return None
        stream: int | None = None
        number, stuffed, begun = 0, False, False
        for packet in self._packets(place, stride):
            if packet[0] != SYNC or packet[1] & 0x80:
                return False
            own = stream_of(packet)
            stream = own if stream is None else stream
            if own != stream:
                if own == PROGRAMS and begun:
                    stuffed = True  # another recording, or a segment, begins here
                continue
            starts, has_payload = bool(packet[1] & 0x40), bool(packet[3] & 0x10)
            if starts and begun:
                return stuffed
            if has_payload and begun and packet[3] & 0x0F != (number + 1) & 0x0F:
                return False
            if has_payload:
                number, begun = packet[3] & 0x0F, True
                stuffed = bool(packet[3] & 0x20)
        return True  # the last frame of the file

    def is_joined(self, before: int, after: int) -> bool:
        """Tell whether packets are numbered on from one place to the other, and begin no frame."""
        stride = self._stride(before)
        if stride is None or (after - before) % stride:
            return True
        first = self.read(before, 4)
        number = first[3] & 0x0F
        count = (after - before) // stride
        for index, packet in enumerate(islice(self._packets(before, stride), 1, count + 1), 1):
            if stream_of(packet) != stream_of(first) or not packet[3] & 0x10:
                continue
            number = (number + 1) & 0x0F
            if packet[3] & 0x0F != number:
                return False
            if packet[1] & 0x40:
                return index == count
        return True

    def is_ended(self, last: int) -> bool | None:
        """Say that it does: a transport stream states no length."""
        return True

    def _stride(self, place: int) -> int | None:
        """Return how far packets are apart, None if there is none at a place."""
        head = self.read(place, TIMED + 1)
        if not head or head[0] != SYNC:
            return None
        for stride in (PACKET, TIMED):
            if len(head) <= stride or head[stride] == SYNC:
                return stride
        return None

    def _packets(self, place: int, stride: int) -> Iterator[bytes]:
        """Give the packets from a place on."""
        data = b"..."
        while data:
            data = self.read(place, BATCH * stride)
            for offset in range(0, len(data) - PACKET + 1, stride):
                if not self.spend():
                    return
                yield data[offset : offset + PACKET]
            place += BATCH * stride


def stream_of(packet: bytes) -> int:
    """Return the number of the stream that a packet belongs to."""
    return (packet[1] & 0x1F) << 8 | packet[2]
