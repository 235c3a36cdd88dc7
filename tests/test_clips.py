"""Clips as files: what was written can be read, and appears whole or not at all."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from reels import moving

from vkrt.errors import ImageError, OutputError, VideoError
from vkrt.media.clips import ClipWriter
from vkrt.media.video import open_video

COLOURS = [(200, 30, 60), (20, 220, 80), (10, 60, 250), (255, 255, 255), (0, 0, 0)]


def plain(height: int, width: int) -> list[np.ndarray]:
    """Return one frame of each colour."""
    return [np.full((height, width, 3), colour, np.uint8) for colour in COLOURS]


def write(path: Path, frames: list[np.ndarray], fps: float = 25) -> Path:
    with ClipWriter(path, fps) as clip:
        for frame in frames:
            clip.write(frame)
    return path


def codec_of(path: Path) -> str:
    with av.open(str(path)) as container:
        return container.streams.video[0].codec_context.codec.canonical_name


def listing(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("size", [(48, 64), (47, 63), (3, 5), (1, 1)])
def test_mp4_has_the_frames(tmp_path: Path, size: tuple[int, int]) -> None:
    path = write(tmp_path / "clip.mp4", plain(*size), 24)
    height, width = size
    with open_video(path) as opened:
        got = list(opened)
        assert opened.fps == pytest.approx(24)
        assert opened.size == (height + height % 2, width + width % 2)
    assert len(got) == len(COLOURS)
    for frame, colour in zip(got, COLOURS, strict=True):
        assert np.abs(frame.astype(int) - colour).max() <= 4
    assert listing(tmp_path) == ["clip.mp4"]


@pytest.mark.parametrize("size", [(48, 64), (47, 63), (1, 1)])
def test_gif_has_the_frames_exactly(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = plain(*size)
    frames.insert(2, frames[1])
    path = write(tmp_path / "clip.GIF", frames, 10)
    with open_video(path) as opened:
        got = list(opened)
        assert opened.fps == pytest.approx(10)
    assert len(got) == len(frames) and all(map(np.array_equal, got, frames))


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_moving_picture_is_near_the_original(tmp_path: Path, suffix: str) -> None:
    frames = moving(12)
    path = write(tmp_path / f"clip{suffix}", frames, 25)
    with open_video(path) as opened:
        got = list(opened)
    assert len(got) == 12
    assert max(np.abs(a.astype(int) - b).mean() for a, b in zip(got, frames, strict=True)) < 6


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_frames_are_not_changed_and_may_be_views(tmp_path: Path, suffix: str) -> None:
    frames = np.stack(plain(16, 16))
    before = frames.copy()
    frames.flags.writeable = False
    path = write(tmp_path / f"clip{suffix}", [frame[:, ::-1] for frame in frames])
    assert np.array_equal(frames, before)
    with open_video(path) as opened:
        assert opened.length() == len(frames)


@pytest.mark.parametrize("fps", [0.5, 12.3456, 23.976, 30, 240, 1000])
def test_rates(tmp_path: Path, fps: float, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "libx264", "libopenh264")  # MPEG-4 can state fewer rates
    path = write(tmp_path / "clip.mp4", plain(16, 16), fps)
    with open_video(path) as opened:
        assert opened.fps == pytest.approx(fps, rel=1e-3)


def refuse(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make PyAV lack some encoders."""
    known = av.codec.Codec

    def find(name: str, mode: str = "r") -> Any:
        if name in names:
            raise av.codec.codec.UnknownCodecError(name)
        return known(name, mode)

    monkeypatch.setattr(av.codec, "Codec", find)


def test_encoder_is_h264_or_else_mpeg4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write(tmp_path / "first.mp4", plain(16, 16))
    assert codec_of(first) in ("h264", "mpeg4")
    refuse(monkeypatch, "libx264", "libopenh264")
    second = write(tmp_path / "second.mp4", plain(16, 16))
    assert codec_of(second) == "mpeg4"
    with open_video(second) as opened:
        assert np.abs(opened.frame(1).astype(int) - COLOURS[1]).max() <= 6


# --- whole or not at all


def test_old_file_stays_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")
    with ClipWriter(path, 25) as clip:
        clip.write(moving(1)[0])
        assert path.read_bytes() == b"old" and clip.is_open
    assert not clip.is_open and path.stat().st_size > 100
    assert listing(tmp_path) == ["clip.mp4"]
    clip.close()


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
@pytest.mark.parametrize("count", [0, 3])
def test_an_error_in_between_leaves_nothing(tmp_path: Path, suffix: str, count: int) -> None:
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), ClipWriter(path, 25) as clip:
        for frame in moving(count):
            clip.write(frame)
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and listing(tmp_path) == [path.name]


def test_no_frames(tmp_path: Path) -> None:
    with (
        pytest.raises(VideoError, match="would have no frames; write at least one"),
        ClipWriter(tmp_path / "clip.mp4", 25),
    ):
        pass
    assert listing(tmp_path) == []


class Full:
    """Be a file on a disk that is full from some write on."""

    def __init__(self, stream: Any, room: int) -> None:
        self.stream = stream
        self.room = room

    def write(self, data: bytes) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.stream.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
@pytest.mark.parametrize("room", [0, 600])
def test_full_disk(tmp_path: Path, suffix: str, room: int) -> None:
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(b"old")
    with (
        pytest.raises(OutputError, match=r"can't be written \(.*\); free some space"),
        ClipWriter(path, 25) as clip,
    ):
        clip.stream = Full(clip.stream, room)  # type: ignore[assignment]
        for frame in moving(8):
            clip.write(frame)
    assert path.read_bytes() == b"old" and listing(tmp_path) == [path.name]


# --- what can't be written


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda at: ClipWriter(at / "clip.webm", 25), OutputError, r"ends in \.mp4 or \.gif"),
        (lambda at: ClipWriter(at / "clip", 25), OutputError, r"ends in \.mp4 or \.gif"),
        (lambda at: ClipWriter(at / "none" / "clip.mp4", 25), OutputError, "does not exist; make"),
        (lambda at: ClipWriter(at / "clip.mp4", 0), VideoError, "can't have 0 frames a second"),
        (lambda at: ClipWriter(at / "clip.mp4", float("nan")), VideoError, "can't have nan"),
        (lambda at: ClipWriter(at / "clip.mp4", 1001), VideoError, r"give 0\.01 to 1000"),
        (lambda at: ClipWriter(at / "clip.gif", 60), VideoError, r"give 0\.01 to 50"),
    ],
)
def test_refusals(
    tmp_path: Path, make: Callable[[Path], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        make(tmp_path)
    assert "\n" not in str(caught.value) and listing(tmp_path) == []


def test_frames_of_another_size(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with ClipWriter(path, 25) as clip:
        clip.write(moving(1)[0])
        with pytest.raises(VideoError, match=r"frame 1 of .* is 32x16, but the first is 64x48"):
            clip.write(np.zeros((16, 32, 3), np.uint8))
        clip.write(moving(2)[1])
    with open_video(path) as opened:
        assert opened.length() == 2


@pytest.mark.parametrize(
    "frame",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8)],
)
def test_what_is_no_frame(tmp_path: Path, frame: np.ndarray) -> None:
    with pytest.raises(VideoError, match="must be"), ClipWriter(tmp_path / "clip.mp4", 25) as clip:
        clip.write(frame)
    with pytest.raises(ImageError, match="no pixels"), ClipWriter(tmp_path / "a.gif", 25) as clip:
        clip.write(np.zeros((0, 4, 3), np.uint8))
    assert listing(tmp_path) == []


def test_closed(tmp_path: Path) -> None:
    with ClipWriter(tmp_path / "clip.mp4", 25) as clip:
        clip.write(moving(1)[0])
    with pytest.raises(VideoError, match="is closed; open another"):
        clip.write(moving(1)[0])


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(VideoError, match=r"run pip install 'vkrt\[video\]'"):
        ClipWriter(tmp_path / "clip.mp4", 25)
    assert listing(tmp_path) == []
