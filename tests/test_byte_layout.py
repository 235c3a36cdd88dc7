"""The structure of video files: what leads from packet to packet, within bounds of time."""

from __future__ import annotations

import io
import warnings
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reels import numbered, packet_places, write_clip

from vkrt.errors import VkrtError
from vkrt.media.byte_layout import Apng, Boxes, ByteLayout, Flv, Gif, Riff
from vkrt.media.matroska import Matroska
from vkrt.media.transport_stream import TransportStream
from vkrt.media.video import open_video
from vkrt.weights.safety_limits import MAX_LAYOUT_STEPS

KINDS: dict[str, tuple[type[ByteLayout], str, str]] = {
    "clip.mkv": (Matroska, "libx264", "yuv420p"),
    "clip.avi": (Riff, "mjpeg", "yuvj420p"),
    "clip.flv": (Flv, "libx264", "yuv420p"),
    "clip.ts": (TransportStream, "libx264", "yuv420p"),
    "clip.mp4": (Boxes, "libx264", "yuv420p"),
    "clip.gif": (Gif, "gif", "rgb8"),
    "clip.apng": (Apng, "apng", "rgb24"),
}
CHAINED = ["clip.mkv", "clip.avi", "clip.flv", "clip.ts"]


@cache
def clip(name: str) -> tuple[bytes, list[int]]:
    """Return a clip of 12 frames, and where its packets are."""
    _, codec, pixels = KINDS[name]
    with TemporaryDirectory() as folder:
        path = write_clip(Path(folder) / name, numbered(12), codec, pixels=pixels)
        return path.read_bytes(), [place for place, _ in packet_places(path)]


@pytest.mark.parametrize("name", CHAINED)
def test_packets_are_joined_one_by_one(name: str) -> None:
    data, places = clip(name)
    file = io.BytesIO(data)
    file.seek(7)
    layout = KINDS[name][0](file)
    assert all(map(layout.is_joined, places, places[1:]))
    # One that is left out is missed, and so is one that is gone.
    assert not any(map(layout.is_joined, places, places[2:]))
    assert file.tell() == 7


@pytest.mark.parametrize("name", CHAINED)
def test_packets_that_are_gone_are_missed(name: str) -> None:
    data, places = clip(name)
    cut = 20 if name != "clip.ts" else 188
    gone = io.BytesIO(data[: places[5] - cut] + data[places[5] :])
    layout = KINDS[name][0](gone)
    assert layout.is_joined(places[2], places[3])
    # Here a frame of a transport stream is one of its packets.
    before = places[3] if name == "clip.ts" else places[4]
    assert not layout.is_joined(before, places[5] - cut)


@pytest.mark.parametrize("name", KINDS)
def test_ends(name: str) -> None:
    data, places = clip(name)
    kind = KINDS[name][0]
    assert kind(io.BytesIO(data)).is_ended(places[-1])
    if name == "clip.ts":
        return  # it states no length
    for length in (len(data) * 2 // 3, len(data) - 13):
        last = max(place for place in places if place < length)
        assert kind(io.BytesIO(data[:length])).is_ended(last) is False, length


def test_frames_of_a_transport_stream_that_lost_bytes() -> None:
    data, places = clip("clip.ts")
    layout = TransportStream(io.BytesIO(data))
    assert all(map(layout.is_whole, places))
    assert layout.is_whole(places[0] + 1) is None  # no packet is there
    begin, end = places[0], places[1]
    assert end - begin > 4 * 188
    for lost in range(begin + 188, end, 188):
        broken = TransportStream(io.BytesIO(data[:lost] + data[lost + 188 :]))
        # Without its last packet a frame has no end; what is of other streams may go.
        of_frame = data[lost + 1 : lost + 3] == data[begin + 1 : begin + 3] or data[lost + 2] == 0
        assert broken.is_whole(begin) is (not of_frame and data[lost + 1 : lost + 3] != b"\x01\0")


@pytest.mark.parametrize("name", CHAINED)
def test_work_is_bounded(name: str) -> None:
    element = {
        "clip.mkv": b"\xec\x80",
        "clip.avi": b"JUNK\0\0\0\0",
        "clip.flv": b"\x08" + bytes(14),
        "clip.ts": b"\x47\x1f\xff\x10" + bytes(184),
    }[name]
    data, places = clip(name)
    # What a packet has before its place.
    block = 2 if data[places[1] - 2] == 0xA3 else 3
    head = {"clip.mkv": block, "clip.avi": 8}.get(name, 0)
    begin = places[1] - head
    assert KINDS[name][0](io.BytesIO(data)).is_joined(places[0], places[1])
    layout = KINDS[name][0](io.BytesIO(data[:begin] + element * 3000 + data[begin:]))
    assert layout.is_joined(places[0], places[1] + 3000 * len(element))
    layout._steps = 2000
    assert layout.is_joined(places[0], places[1] + 3000 * len(element))
    assert layout._steps <= 0 < MAX_LAYOUT_STEPS
    assert layout.is_joined(places[0], places[2] + 3000 * len(element))


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from([*KINDS]),
    st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=6)), min_size=1, max_size=5),
    st.floats(0.3, 1),
)
def test_damaged_bytes_never_escape(
    name: str, changes: list[tuple[int, bytes]], share: float
) -> None:
    data = bytearray(clip(name)[0])
    for place, new in changes:
        begin = place % len(data)
        data[begin : begin + len(new)] = new
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            with open_video(bytes(data[: int(len(data) * share)]), on_error="skip") as opened:
                got = list(opened)
                assert opened.count == len(got) < 1000
                assert np.array_equal(opened.frame(0), got[0])
        except VkrtError as error:
            assert "\n" not in str(error)
