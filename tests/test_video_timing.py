"""Times of clips: parts put together, late starts, pauses and long last frames are no damage."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from reels import decode_all, number_of, numbered, write_clip

from vkrt.media.video import open_video

COUNT = 24


def check_whole(path: Path, numbers: Sequence[int] | None = None) -> float | None:
    """Assert that a clip gives what PyAV alone decodes, in any order, without a word; its rate."""
    wanted = decode_all(path)
    if numbers is not None:
        assert [number_of(frame) for frame in wanted] == list(numbers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with open_video(path, cache=3) as opened:
            got = list(opened)
            assert len(got) == len(wanted) == opened.count
            assert all(map(np.array_equal, got, wanted))
            for index in (len(got) - 1, len(got) // 2, 0, len(got) - 2):
                if index >= 0:
                    assert np.array_equal(opened.frame(index), wanted[index])
            return opened.fps


def test_variable_frame_rate(tmp_path: Path) -> None:
    times = [0, 1, 2, 10, 11, 40, 41, 99]
    for name in ("clip.mkv", "clip.mp4"):
        rate = check_whole(write_clip(tmp_path / name, numbered(8), times=times), range(8))
        assert rate == pytest.approx(7 / (99 / 25), rel=0.01)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mov", "clip.mkv", "clip.ts", "clip.flv"])
def test_late_start(tmp_path: Path, name: str) -> None:
    times = range(125, 125 + COUNT)
    rate = check_whole(write_clip(tmp_path / name, numbered(COUNT), times=times), range(COUNT))
    assert rate == pytest.approx(25)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("clip.mp4", "libx264"),
        ("clip.mkv", "libx264"),
        ("clip.webm", "libvpx-vp9"),
        ("clip.avi", "mjpeg"),
        ("clip.flv", "libx264"),
    ],
)
def test_long_last_frame(tmp_path: Path, name: str, codec: str) -> None:
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write_clip(tmp_path / name, numbered(COUNT), codec, pixels=pixels, last=500)
    assert check_whole(path, range(COUNT)) == pytest.approx(25)


def test_pause_before_the_last_frame(tmp_path: Path) -> None:
    times = [*range(COUNT - 1), 25 * 60]
    for name in ("clip.mp4", "clip.mkv"):
        path = write_clip(tmp_path / name, numbered(COUNT), times=times)
        assert check_whole(path, range(COUNT)) == pytest.approx(25)


FRAGMENTS = {"movflags": "frag_every_frame+empty_moov+default_base_moof"}
LONG_GROUP = {"codec": "libx265", "options": {"x265-params": "log-level=none"}}


@pytest.mark.parametrize(
    ("suffix", "start", "options"),
    [
        (".ts", 0, {}),
        (".ts", COUNT, {}),
        (".ts", 5000, {}),
        (".ts", -5000, {}),
        (".ts", 0, {"codec": "mpeg2video"}),
        (".mkv", 0, {}),
        (".mkv", 0, {"codec": "mjpeg", "pixels": "yuvj420p"}),
        (".mp4", 0, {"options": FRAGMENTS, "frames": 0}),
        (".h264", 0, {}),
        (".mpg", 0, {"codec": "mpeg2video"}),
    ],
)
def test_parts_put_together(
    tmp_path: Path, suffix: str, start: int, options: dict[str, Any]
) -> None:
    """Times may go on, start anew, jump or jump back where the second part begins."""
    given = dict(options)
    given.pop("frames", None)
    frames = numbered(2 * COUNT)
    begins = max(-start, 0), max(start, 0)
    path = tmp_path / f"both{suffix}"
    with path.open("wb") as both:
        for part, begin in enumerate(begins):
            own = frames[part * COUNT : (part + 1) * COUNT]
            times = range(begin, begin + COUNT)
            single = write_clip(tmp_path / f"{part}{suffix}", own, times=times, **given)
            both.write(single.read_bytes())
    if suffix == ".mp4":
        # The edit list of the first part cuts one frame off the second one.
        assert 2 * COUNT - 1 <= len(decode_all(path)) <= 2 * COUNT
    assert check_whole(path) == pytest.approx(25)
    if suffix != ".mp4":
        assert [number_of(frame) for frame in decode_all(path)] == list(range(2 * COUNT))


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "options"),
    [
        ("open.mkv", "libx264", "yuv420p", {"x264-params": "open-gop=1:keyint=8:bframes=3"}),
        ("ten.mp4", "libx264", "yuv420p10le", {}),
        ("hevc.mp4", "libx265", "yuv420p", {"x265-params": "log-level=none:keyint=8:open-gop=1"}),
        ("hevc.ts", "libx265", "yuv420p", {"x265-params": "log-level=none:keyint=8"}),
        ("vp8.webm", "libvpx", "yuv420p", {"auto-alt-ref": "1", "lag-in-frames": "12"}),
        ("vp9.webm", "libvpx-vp9", "yuv420p", {"auto-alt-ref": "1", "lag-in-frames": "12"}),
        ("prores.mov", "prores_ks", "yuv422p10le", {}),
        ("ffv1.mkv", "ffv1", "yuv444p", {}),
        ("mpeg4.avi", "mpeg4", "yuv420p", {}),
        ("h264.avi", "libx264", "yuv420p", {}),
        ("wmv2.wmv", "wmv2", "yuv420p", {}),
        ("mpeg2.ts", "mpeg2video", "yuv420p", {}),
        ("interlaced.ts", "libx264", "yuv420p", {"x264-params": "tff=1"}),
        ("clip.apng", "apng", "rgb24", {}),
    ],
)
def test_codecs(
    tmp_path: Path, name: str, codec: str, pixels: str, options: dict[str, str]
) -> None:
    path = write_clip(tmp_path / name, numbered(COUNT), codec, pixels=pixels, encoder=options)
    check_whole(path, range(COUNT))


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts", "clip.flv"])
def test_sound_between_the_frames(tmp_path: Path, name: str) -> None:
    path = write_clip(tmp_path / name, numbered(COUNT), sound="aac")
    check_whole(path, range(COUNT))
    if name.endswith("ts"):
        path.write_bytes(2 * path.read_bytes())
        check_whole(path, [*range(COUNT), *range(COUNT)])


@pytest.mark.slow
def test_av1(tmp_path: Path) -> None:
    for name in ("clip.mp4", "clip.mkv"):
        check_whole(write_clip(tmp_path / name, numbered(COUNT), "libsvtav1"), range(COUNT))


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts"])
def test_odd_sides_and_single_frames(tmp_path: Path, name: str) -> None:
    check_whole(write_clip(tmp_path / name, numbered(3, 61, 93), pixels="yuv444p"), range(3))
    check_whole(write_clip(tmp_path / name, numbered(1)), range(1))


def test_fragments(tmp_path: Path) -> None:
    for flags in (FRAGMENTS["movflags"], "frag_keyframe+empty_moov"):
        path = tmp_path / "clip.mp4"
        write_clip(path, numbered(COUNT), options={"movflags": flags})
        check_whole(path, range(COUNT))


class OneWay(io.BytesIO):
    """Be a file that can't be gone back in, as a live stream."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: int) -> int:
        raise OSError("can't seek")


def test_recordings_of_live_streams(tmp_path: Path) -> None:
    """They state neither their length nor that of their clusters."""
    path = write_clip(tmp_path / "clip.mkv", numbered(COUNT))
    live = OneWay()
    with av.open(str(path)) as source, av.open(live, "w", format="matroska") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
        target.close()
    path.write_bytes(live.getvalue())
    assert b"\x18\x53\x80\x67\x01\xff" in path.read_bytes()[:200]
    check_whole(path, range(COUNT))


# --- what is cut off is still told


@pytest.mark.parametrize("name", ["clip.mkv", "clip.flv", "clip.avi", "clip.mp4"])
def test_cut_files_are_told(tmp_path: Path, name: str) -> None:
    codec, pixels = ("mjpeg", "yuvj420p") if name.endswith("avi") else ("libx264", "yuv420p")
    options = {"movflags": FRAGMENTS["movflags"]} if name.endswith("mp4") else {}
    path = write_clip(
        tmp_path / name, numbered(COUNT), codec, pixels=pixels, last=500, options=options
    )
    data = path.read_bytes()
    for share in (0.6, 0.9):
        with (
            open_video(data[: int(len(data) * share)], on_error="skip") as opened,
            pytest.warns(RuntimeWarning, match=r"may be cut off: get|is damaged; the frame before"),
        ):
            got = [number_of(frame) for frame in opened]
        assert 5 < len(got) <= COUNT
        assert got[: len(got) - 2] == list(range(len(got) - 2))
