"""Damaged clips: what is damaged is told, and every sound frame comes under its own number."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from reels import (
    damaged,
    decode_all,
    moving,
    number_of,
    numbered,
    packet_places,
    write_clip,
)

from vkrt.errors import VideoError
from vkrt.media.ledger import Ledger
from vkrt.media.video import open_video

COUNT = 25
LOST = 13


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an MP4 of 25 frames with B-frames and keyframes at 0, 10 and 20."""
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", moving(COUNT))


def write_folder(folder: Path, frames: list[np.ndarray]) -> Path:
    """Write frames as 0.png, 1.png and so on."""
    folder.mkdir(exist_ok=True)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index}.png")
    return folder


def same(got: list[np.ndarray], wanted: list[np.ndarray]) -> bool:
    return len(got) == len(wanted) and all(map(np.array_equal, got, wanted))


def one_line(caught: pytest.ExceptionInfo[Exception]) -> bool:
    return "\n" not in str(caught.value) and ";" in str(caught.value)


@pytest.fixture(scope="module")
def intra(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a clip whose frames do not need one another."""
    path = tmp_path_factory.mktemp("intra") / "clip.mov"
    return write_clip(path, moving(COUNT), "png", pixels="rgb24")


def test_damaged_frame_is_named(intra: Path) -> None:
    wanted = moving(COUNT)
    with open_video(damaged(intra, LOST), cache=2) as opened:
        got = []
        with pytest.raises(VideoError, match="frame 13 of the video is damaged; get") as caught:
            got.extend(opened.frame(index) for index in range(COUNT))
        assert one_line(caught)
        got += [opened.frame(index) for index in range(LOST + 1, COUNT)]
        assert same(got, wanted[:LOST] + wanted[LOST + 1 :])
        for _ in range(2):
            with pytest.raises(VideoError, match="frame 13"):
                opened.frame(LOST)
        assert np.array_equal(opened.frame(12), wanted[12])
        assert opened.length() == COUNT


@pytest.mark.parametrize("cache", [1, 8])
def test_damaged_frame_is_repeated(intra: Path, cache: int) -> None:
    wanted = moving(COUNT)
    wanted[LOST] = wanted[LOST - 1]
    with open_video(damaged(intra, LOST), cache=cache, on_error="skip") as opened:
        with pytest.warns(RuntimeWarning, match="frame 13 of the video is damaged") as warned:
            got = list(opened)
            for index in (13, 20, 13, 12, 14, 13):
                assert np.array_equal(opened.frame(index), wanted[index])
        assert same(got, wanted) and opened.count == COUNT
        assert len(warned) == 1


@pytest.mark.parametrize("lost", range(1, 20, 3))
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_damage_keeps_the_other_numbers(clip: Path, tmp_path: Path, name: str, lost: int) -> None:
    path = clip if name == clip.name else write_clip(tmp_path / name, moving(COUNT))
    wanted = decode_all(path)
    with open_video(damaged(path, lost), on_error="skip") as opened:
        with pytest.warns(RuntimeWarning, match=f"frame {lost} of"):
            got = list(opened)
        assert len(got) == COUNT
        key, after = lost // 10 * 10, lost // 10 * 10 + 10
        assert same(got[:key] + got[after:], wanted[:key] + wanted[after:])
        # Whatever order it is read in, it is the same frames that are damaged.
        assert same([opened.frame(index) for index in range(COUNT)], got)


def test_many_damaged_frames_in_a_row(tmp_path: Path) -> None:
    photos: list[Any] = [*moving(2), *[b"not a picture"] * 1500, *moving(1)]
    for source in (photos, iter(photos)):
        with (
            open_video(source, cache=1, on_error="skip") as opened,
            pytest.warns(RuntimeWarning) as warned,
        ):
            got = list(opened)
        assert len(got) == 1503 and len(warned) == 1
        assert same(got[1:1502], [photos[1]] * 1501)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_first_frame_is_damaged(clip: Path, tmp_path: Path, on_error: Any) -> None:
    folder = write_folder(tmp_path / "frames", moving(3))
    (folder / "0.png").write_bytes(b"\x89PNG")
    for source in (damaged(clip, 0), folder):
        with pytest.raises(VideoError, match=r"frame 0 of .*(damaged|can't be read)"):
            open_video(source, on_error=on_error)


def test_recording_that_starts_between_keyframes(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.ts", moving(COUNT))
    data = path.read_bytes()
    late = data[len(data) // 3 // 188 * 188 :]
    with open_video(late) as opened:
        got = list(opened)
    assert len(got) in (5, 15)
    assert same(got, decode_all(path)[-len(got) :])


def test_file_that_is_cut_off(tmp_path: Path) -> None:
    frames = moving(COUNT)
    late = write_clip(tmp_path / "late.mp4", frames).read_bytes()
    with pytest.raises(VideoError, match=r"is not a video, or cut off \(.*\); give") as caught:
        open_video(late[: len(late) * 6 // 10])
    assert one_line(caught)
    early = write_clip(tmp_path / "early.mp4", frames, options={"movflags": "faststart"})
    data = early.read_bytes()[:-200]
    with open_video(data) as opened, pytest.raises(VideoError, match=r"frame 2\d of .* damaged"):
        list(opened)
    with (
        open_video(data, on_error="skip") as opened,
        pytest.warns(RuntimeWarning, match="frame 2"),
    ):
        assert 20 < len(list(opened)) < COUNT


def test_file_that_ends_early_without_damage(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv", moving(COUNT))
    data = path.read_bytes()
    with open_video(data[: len(data) * 7 // 10]) as opened:
        with pytest.warns(RuntimeWarning, match=r"ends after 0\.\d\d s, but states 1\.00 s; "):
            got = list(opened)
        assert same(got, decode_all(path)[: len(got)]) and 5 < len(got) < COUNT


def test_frames_of_changing_size(tmp_path: Path) -> None:
    small, large = moving(3, 32, 32), moving(4)
    stream = tmp_path / "both.h264"
    for name, frames in (("small", small), ("large", large)):
        with stream.open("ab") as file:
            file.write(write_clip(tmp_path / f"{name}.h264", frames).read_bytes())
    message = "frame 3 of .* is 64x48, but the first is 32x32; scale"
    for source in (small + large, iter(small + large), stream):
        with open_video(source) as opened:
            with pytest.raises(VideoError, match=message) as caught:
                list(opened)
            assert one_line(caught)
            assert opened.frame(2).shape == (32, 32, 3)


# --- every sound frame under its own number

INTRA = {
    "clip.mp4": ("libx264", "yuv420p"),
    "clip.mkv": ("mjpeg", "yuvj420p"),
    "clip.avi": ("mjpeg", "yuvj420p"),
    "clip.mov": ("prores_ks", "yuv422p10le"),
    "clip.ts": ("libx264", "yuv420p"),
    "clip.flv": ("libx264", "yuv420p"),
}


# What the container has before a packet's data, from the place that PyAV tells.
HEADS = {".mkv": 4, ".flv": 16}


def read_skipping(data: bytes) -> list[np.ndarray]:
    """Return the frames of a damaged clip, which is told of, the same ones in any order."""
    with (
        open_video(data, on_error="skip") as opened,
        pytest.warns(RuntimeWarning, match=r"frame \d+ of the video is damaged|may be cut off"),
    ):
        got = list(opened)
        order = list(reversed(range(len(got))))
        again = [opened.frame(index) for index in order][::-1]
    assert same(got, again)
    return got


@pytest.mark.parametrize("name", INTRA)
@pytest.mark.parametrize("lost", [1, LOST, COUNT - 2])
def test_only_damaged_frames_are_replaced(tmp_path: Path, name: str, lost: int) -> None:
    codec, pixels = INTRA[name]
    path = write_clip(tmp_path / name, numbered(COUNT), codec, pixels=pixels, gop=1)
    wanted = decode_all(path)
    assert [number_of(frame) for frame in wanted] == list(range(COUNT))
    places = packet_places(path)
    data = path.read_bytes()
    place, size = places[lost]
    if name.endswith("ts"):
        after = places[lost + 1][0]
        data = data[:place] + data[after:]  # as a receiver loses it
    else:
        begin = place + HEADS.get(name[-4:], 0)
        data = data[:begin] + bytes(size) + data[begin + size :]
    numbers = [number_of(frame) for frame in read_skipping(data)]
    assert numbers == [*range(lost), lost - 1, *range(lost + 1, COUNT)]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.ts", "clip.flv"])
@pytest.mark.parametrize("lost", [11, 12, 20])
def test_other_groups_keep_their_numbers(tmp_path: Path, name: str, lost: int) -> None:
    path = write_clip(tmp_path / name, numbered(30))
    wanted = decode_all(path)
    place, size = packet_places(path)[lost]
    data = bytearray(path.read_bytes())
    if name.endswith("ts"):
        del data[place : packet_places(path)[lost + 1][0]]
    else:
        begin = place + HEADS.get(name[-4:], 0)
        data[begin : begin + size] = bytes(size)
    got = read_skipping(bytes(data))
    assert len(got) == 30
    group = lost // 10 * 10
    for index in (*range(group - 3), *range(group + 10, 30)):
        assert np.array_equal(got[index], wanted[index]), index


def test_frames_of_a_lost_cluster_are_counted(tmp_path: Path) -> None:
    """A Matroska file whose block has a damaged head goes on with the next cluster."""
    options = {"cluster_time_limit": "200"}
    path = write_clip(
        tmp_path / "clip.mkv", numbered(COUNT), "mjpeg", pixels="yuvj420p", options=options
    )
    place, _ = packet_places(path)[7]
    data = bytearray(path.read_bytes())
    data[place - 2 : place + 8] = bytes(10)
    got = [number_of(frame) for frame in read_skipping(bytes(data))]
    assert len(got) == COUNT
    lost = [index for index, number in enumerate(got) if number != index]
    assert 7 in lost and lost == list(range(lost[0], lost[-1] + 1)) and len(lost) < 12
    assert {got[index] for index in lost} == {lost[0] - 1}


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "sound"),
    [
        ("clip.mkv", "libx264", "yuv420p", "aac"),
        ("clip.flv", "libx264", "yuv420p", "aac"),
        ("clip.ts", "libx264", "yuv420p", "aac"),
        ("clip.mp4", "libx264", "yuv420p", "aac"),
        ("clip.avi", "mjpeg", "yuvj420p", "mp3"),
    ],
)
def test_bursts_of_noise_shift_no_frame(
    tmp_path: Path, name: str, codec: str, pixels: str, sound: str
) -> None:
    options = {"cluster_time_limit": "300"} if name.endswith("mkv") else {}
    path = write_clip(
        tmp_path / name, numbered(50), codec, pixels=pixels, options=options, sound=sound
    )
    wanted = decode_all(path)
    whole = path.read_bytes()
    index = {frame.tobytes(): number for number, frame in enumerate(wanted)}
    assert len(index) == len(wanted) == 50
    spoiled = 0
    for seed in range(12):
        noise = np.random.default_rng(seed)
        place, length = noise.integers(len(whole) // 4, len(whole) * 3 // 4), noise.choice([4, 300])
        data = bytearray(whole)
        data[place : place + length] = noise.bytes(length)
        if name.endswith("ts"):
            begin = place // 188 * 188
            data = bytearray(whole[:begin] + whole[begin + 188 * seed :])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            with open_video(bytes(data), on_error="skip") as opened:
                got = list(opened)
        assert len(got) == 50, seed
        # What is there of the true frames is at its place, or stands in for later ones.
        assert all(index.get(frame.tobytes(), 0) <= number for number, frame in enumerate(got))
        spoiled += sum(index.get(frame.tobytes()) != number for number, frame in enumerate(got))
    assert 0 < spoiled < 12 * 25


def frame_at(time: int, corrupt: bool = False) -> Any:
    """Return what the ledger looks at of a frame."""
    return SimpleNamespace(pts=time, is_corrupt=corrupt, key_frame=False)


def settled(ledger: Ledger, *times: int) -> list[tuple[int | None, bool]]:
    """Return the times that frames settle, and whether each is sound."""
    pictures = [each for time in times for each in ledger.settle(frame_at(time))]
    return [(picture.time, picture.frame is not None) for picture in pictures]


def test_pictures_that_come_late_take_their_places() -> None:
    ledger = Ledger(one_each=True, duration=1)
    for time in (0, 1, 5, 2, 3, 4):
        ledger.enter(time, time == 0, sound=time != 3)
    assert settled(ledger, 0, 1) == [(0, True), (1, True)]
    assert settled(ledger, 5, 4) == []
    assert settled(ledger, 2) == [(2, True), (3, False), (4, True), (5, True)]
    assert list(ledger.close()) == []


def test_pictures_that_come_after_their_places_were_given_are_dropped() -> None:
    ledger = Ledger(one_each=True, duration=1)
    for time in range(20):
        ledger.enter(time, time == 0, sound=True)
    early = settled(ledger, 0, *range(2, 12))
    assert early[:3] == [(0, True), (1, False), (2, True)]
    rest = settled(ledger, 1, *range(12, 20))
    assert [*early, *rest] == [(time, time != 1) for time in range(20)]


def test_second_fields_are_not_missing() -> None:
    ledger = Ledger(one_each=True, duration=10, halves=True)
    for half in range(0, 60, 5):
        ledger.enter(half, half == 0, sound=True)
    early = settled(ledger, 0, 10, 30, 40, 50)
    assert early == [(0, True), (10, True)]  # the picture at 20 may still come
    late = [(picture.time, picture.frame is not None) for picture in ledger.close()]
    assert late == [(20, False), (30, True), (40, True), (50, True)]
