"""Clips: every source gives the same frames, in any order, and names what is wrong with it."""

from __future__ import annotations

import io
import os
import random
import sys
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from reels import damaged, decode_all, moving, turned, write_clip

from vkrt.errors import ImageError, VideoError
from vkrt.media import decoder, image, video
from vkrt.media.decoder import Decoder
from vkrt.media.video import Frames, open_camera, open_video

COUNT = 25
FORMATS = [
    ("clip.mp4", "libx264", "yuv420p"),
    ("clip.mkv", "libx264", "yuv420p"),
    ("clip.avi", "mpeg4", "yuv420p"),
    ("clip.webm", "libvpx-vp9", "yuv420p"),
    ("clip.gif", "gif", "rgb8"),
    ("clip.ts", "libx264", "yuv420p"),
    ("clip.h264", "libx264", "yuv420p"),
]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an MP4 of 25 frames with B-frames and keyframes at 0, 10 and 20."""
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", moving(COUNT))


LOST = 13


@pytest.fixture(scope="module")
def intra(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a clip whose frames do not need one another."""
    path = tmp_path_factory.mktemp("intra") / "clip.mov"
    return write_clip(path, moving(COUNT), "png", pixels="rgb24")


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


# --- the same frames from every source


def test_sources_agree(tmp_path: Path) -> None:
    frames = moving(12)
    folder = write_folder(tmp_path / "frames", frames)
    path = write_clip(tmp_path / "clip.mkv", frames, codec="ffv1", pixels="bgr0")
    sources = [
        folder,
        str(folder),
        path,
        path.read_bytes(),
        io.BytesIO(path.read_bytes()),
        np.stack(frames),
        frames,
        tuple(folder / f"{index}.png" for index in range(12)),
        [Image.fromarray(frame) for frame in frames],
        iter(frames),
        (frame for frame in frames),
        dict(enumerate(frames)).values(),
    ]
    for source in sources:
        with open_video(source, cache=3) as opened:
            assert same(list(opened), frames), type(source)
            assert opened.count == opened.expected == opened.length() == 12
            assert opened.size == (48, 64)


def test_frames_pass_through() -> None:
    opened = open_video(moving(2))
    assert open_video(opened) is opened


def test_frames_are_whole_and_read_only(clip: Path) -> None:
    for source in (clip, moving(2), iter(moving(2))):
        with open_video(source) as opened:
            frame = opened.frame(0)
            assert frame.dtype == np.uint8 and frame.flags.c_contiguous
            with pytest.raises(ValueError, match="read-only"):
                frame[0, 0] = 1


def test_own_arrays_stay_writable() -> None:
    own = moving(2)
    with open_video(own) as opened:
        opened.frame(1)
    own[1][0, 0] = 1


def test_an_array_that_is_filled_anew_is_copied() -> None:
    def refilled() -> Iterator[np.ndarray]:
        buffer = np.empty((4, 5, 3), np.uint8)
        for value in range(5):
            buffer[:] = value
            yield buffer

    with open_video(refilled()) as opened:
        got = list(opened)
    assert [int(frame[0, 0, 0]) for frame in got] == [0, 1, 2, 3, 4]


# --- folders


def test_folder_is_read_in_natural_order_without_what_is_no_picture(tmp_path: Path) -> None:
    for number in (10, 9, 100, 1):
        Image.new("RGB", (5, 4), (number, 0, 0)).save(tmp_path / f"frame {number}.PNG")
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "._frame 2.png").write_text("what a Mac leaves behind")
    (tmp_path / "more.png").mkdir()
    with open_video(tmp_path) as opened:
        assert [int(frame[0, 0, 0]) for frame in opened] == [1, 9, 10, 100]


@pytest.mark.parametrize("names", [[], ["notes.txt"]])
def test_folder_without_pictures(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_text("text")
    with pytest.raises(VideoError, match="has no pictures; give one with") as caught:
        open_video(tmp_path)
    assert one_line(caught)


def test_folder_with_a_file_that_is_no_picture(tmp_path: Path) -> None:
    frames = moving(5)
    folder = write_folder(tmp_path / "frames", frames)
    (folder / "3.png").write_text("not a picture")
    with open_video(folder) as opened:
        with pytest.raises(VideoError, match=r"frame 3 of .*3\.png is not a picture") as caught:
            list(opened)
        assert one_line(caught)
        assert np.array_equal(opened.frame(4), frames[4])
    with (
        open_video(folder, on_error="skip") as opened,
        pytest.warns(RuntimeWarning, match="frame 3 of"),
    ):
        got = list(opened)
    assert same(got, [*frames[:3], frames[2], frames[4]])


# --- files, in order and in any other


@pytest.mark.parametrize(("name", "codec", "pixels"), FORMATS)
def test_any_order_gives_the_frames_of_their_numbers(
    tmp_path: Path, name: str, codec: str, pixels: str
) -> None:
    path = write_clip(tmp_path / name, moving(COUNT), codec, pixels=pixels)
    wanted = decode_all(path)
    assert len(wanted) == COUNT
    with open_video(path) as opened:
        assert same(list(opened), wanted) and opened.count == COUNT
        assert opened.fps == pytest.approx(25)
    order = [*range(COUNT), *reversed(range(COUNT))]
    random.Random(0).shuffle(order)
    with open_video(path, cache=3) as opened:
        for index in [*order, *reversed(range(COUNT))]:
            assert np.array_equal(opened.frame(index), wanted[index]), index
            assert len(opened._held) <= 3
        assert opened.length() == COUNT


def test_reading_jumps_to_the_keyframe_before(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = 0
    step, jump = Decoder.__next__, Decoder.seek
    jumps: list[int] = []

    def counted(self: Decoder) -> Any:
        nonlocal decoded
        decoded += 1
        return step(self)

    def noted(self: Decoder, time: int) -> None:
        jumps.append(time)
        jump(self, time)

    with open_video(clip, cache=2) as opened:
        assert opened.length() == COUNT
        wanted = decode_all(clip)
        monkeypatch.setattr(Decoder, "__next__", counted)
        monkeypatch.setattr(Decoder, "seek", noted)
        for index, most in ((22, 3), (15, 6), (14, 0), (23, 4), (24, 1)):
            decoded = 0
            assert np.array_equal(opened.frame(index), wanted[index])
            assert decoded <= most
    assert len(jumps) == 3


def seek_nowhere(self: Decoder, time: int) -> None:
    raise OSError("can't seek")


def seek_to_the_start(self: Decoder, time: int) -> None:
    self._container.seek(0)
    self._pictures = self._walk()


def seek_too_far(self: Decoder, time: int) -> None:
    self._container.seek(time, stream=self._stream)
    self._pictures = self._walk()
    next(self._pictures)


def seek_to_the_end(self: Decoder, time: int) -> None:
    self._pictures = iter(())


@pytest.mark.parametrize("seek", [seek_nowhere, seek_to_the_start, seek_too_far, seek_to_the_end])
def test_a_file_that_jumps_wrongly_is_read_from_its_start(
    clip: Path, monkeypatch: pytest.MonkeyPatch, seek: Any
) -> None:
    monkeypatch.setattr(Decoder, "seek", seek)
    wanted = decode_all(clip)
    with open_video(clip, cache=1) as opened:
        for index in (24, 12, 21, 3, 13):
            assert np.array_equal(opened.frame(index), wanted[index])
    with open_video(clip, cache=1) as opened:
        opened.frame(15)
        opened.frame(3)
        assert opened.length() == COUNT


def test_count_is_known_only_at_the_end(clip: Path) -> None:
    with open_video(clip) as opened:
        assert opened.count is None and opened.expected == COUNT
        opened.frame(COUNT - 1)
        assert opened.count is None
        with pytest.raises(VideoError, match=r"has no frame 99, only 25; give a number from 0 to"):
            opened.frame(99)
        assert opened.count == COUNT
        assert len(list(opened)) == COUNT


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_rotation_is_undone(clip: Path, degrees: int) -> None:
    wanted = [np.rot90(frame, degrees // 90) for frame in decode_all(clip)]
    with open_video(turned(clip, degrees)) as opened:
        assert opened.size == wanted[0].shape[:2]
        assert same(list(opened), wanted)
        assert np.array_equal(opened.frame(3), wanted[3])


def test_tags_that_are_no_utf8(tmp_path: Path) -> None:
    tags = {"title": "Blüte"}
    path = write_clip(tmp_path / "clip.mp4", moving(2), metadata=tags, encoding="latin-1")
    with open_video(path) as opened:
        assert len(list(opened)) == 2


def test_files_are_closed_by_whoever_opened_them(clip: Path) -> None:
    own = io.BytesIO(clip.read_bytes())
    with open_video(own) as opened:
        opened.frame(3)
    assert not own.closed
    with open_video(clip) as opened:
        file = opened._file  # type: ignore[attr-defined]
    assert file.closed
    opened.close()
    with pytest.raises(VideoError, match=r"was closed; open it again"):
        opened.frame(0)


def test_threads_share_one_file(clip: Path) -> None:
    wanted = decode_all(clip)
    order = list(range(COUNT)) * 2
    random.Random(1).shuffle(order)
    with open_video(clip, cache=2) as opened, ThreadPoolExecutor(4) as pool:
        got = list(pool.map(opened.frame, order))
    assert same(got, [wanted[index] for index in order])


# --- what is no clip


@pytest.mark.parametrize(
    "content",
    [
        b"hello world\n" * 50,
        b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1.0,\n{clip}\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile {clip}\n",
        np.random.default_rng(0).bytes(5000),
    ],
)
@pytest.mark.parametrize("name", ["file.txt", "file.m3u8", "file.mp4"])
def test_files_that_are_no_video(tmp_path: Path, clip: Path, content: bytes, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.replace(b"{clip}", str(clip).encode()))
    for source in (path, path.read_bytes()):
        with pytest.raises(VideoError, match=r"is not a video, or cut off \(.*\); give") as caught:
            open_video(source)
        assert one_line(caught)


def test_sound_alone(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    with pytest.raises(VideoError, match="has no video in it; give"):
        open_video(path)


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    for path, message in (
        (tmp_path / "none.mp4", "does not exist; check"),
        (tmp_path / "empty.mp4", r"is empty \(0 bytes\); give"),
        (Path(os.devnull), "neither a file nor a folder; for a camera"),
        (tmp_path / ("x" * 300), "can't be read"),
        ("a\0b", "can't be read"),
    ):
        with pytest.raises(VideoError, match=message) as caught:
            open_video(path)
        assert one_line(caught)


@pytest.mark.parametrize("source", [7, None, Image.new("RGB", (4, 4)), object()])
def test_wrong_type(source: Any) -> None:
    with pytest.raises(VideoError, match=r"a clip can't be a .*; give a folder"):
        open_video(source)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 3), np.uint8), r"is one photo by its shape .*; give array\[None\]"),
        (np.zeros((2, 5, 4, 7), np.uint8), r"must be \(T, H, W, 3\) uint8 RGB, .* not"),
        (np.zeros((2, 5, 4, 3), complex), r"frame 0 of the array can't be read: .* complex128"),
        (np.full((2, 5, 4, 3), np.nan), r"frame 0 of the array can't be read: .* finite"),
    ],
)
def test_wrong_arrays(array: np.ndarray, message: str) -> None:
    with pytest.raises(VideoError, match=message) as caught:
        open_video(array)
    assert one_line(caught)


def test_arrays_and_tensors_are_clips() -> None:
    frames = moving(5)
    clip = np.stack(frames)
    tensor = torch.from_numpy(clip)
    for source in (clip / 255, clip.transpose(0, 3, 1, 2), tensor, tensor.float().requires_grad_()):
        with open_video(source) as opened:
            assert same(list(opened), frames) and opened.count == 5
    for source in (list(tensor), iter(tensor / 255), [f / 255 for f in frames], clip.tolist()):
        with open_video(source) as opened:
            assert same(list(opened), frames)
    grey = [np.repeat(frame[:, :, :1], 3, axis=2) for frame in frames]
    for volume in (clip[..., 0], clip[..., :1], clip[..., 0].astype(np.uint16) * 256):
        with open_video(volume) as opened:
            assert same(list(opened), grey)


def test_floats_that_change_their_scale_are_named() -> None:
    frames = [np.zeros((4, 5, 3)), np.full((4, 5, 3), 0.5), np.full((4, 5, 3), 90.0)]
    with open_video(iter(frames)) as opened, pytest.raises(VideoError, match=r"frame 2 .* 90, but"):
        list(opened)
    with open_video(np.stack(frames)) as opened:
        assert [int(frame.max()) for frame in opened] == [0, 0, 90]


@pytest.mark.parametrize("source", [[], np.zeros((0, 4, 4, 3), np.uint8)])
def test_no_frames(source: Any) -> None:
    with pytest.raises(VideoError, match="has no frames; give at least one"):
        open_video(source)
    with (
        open_video(iter(())) as opened,
        pytest.raises(VideoError, match="has no frames; give at least one"),
    ):
        opened.frame(0)


@pytest.mark.parametrize("index", [-1, 1.5, "1", None])
def test_wrong_number(index: Any) -> None:
    with (
        open_video(moving(2)) as opened,
        pytest.raises(VideoError, match=r"can't be .*; frames count from 0"),
    ):
        opened.frame(index)


def test_numbers_beyond_the_clip() -> None:
    with open_video(moving(2)) as opened:
        assert opened.frame(np.int64(1)).shape == (48, 64, 3)
        with pytest.raises(VideoError, match=r"no frame 2, only 2; give a number from 0 to 1"):
            opened.frame(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache": 0}, "cache must be a whole number from 1 to 1000000, not 0"),
        ({"on_error": "ignore"}, r"on_error must be .* not 'ignore'"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(VideoError, match=message):
        open_video(moving(2), **options)


def test_frames_that_are_too_large(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "MAX_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"a frame of .* is 64x48 .* over the limit"):
        open_video(clip)


def test_without_pyav(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    for open_it in (lambda: open_video(clip), open_camera):
        with pytest.raises(VideoError, match=r"run pip install 'vkrt\[video\]'") as caught:
            open_it()
        assert one_line(caught)
    assert len(list(open_video(moving(2)))) == 2


# --- iterators and cameras


def test_iterator_holds_only_the_last_frames() -> None:
    frames = moving(20)
    taken = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal taken
        for frame in frames:
            taken += 1
            yield frame

    with open_video(counted(), cache=4) as opened:
        assert taken == 0 and opened.size is None
        assert np.array_equal(opened.frame(9), frames[9])
        assert taken == 10 and len(opened._held) == 4
        assert np.array_equal(opened.frame(6), frames[6])
        with pytest.raises(VideoError, match=r"frame 5 .* is gone: only the last 4 are held"):
            opened.frame(5)
        with pytest.raises(VideoError, match="only at its end; read its frames first"):
            opened.length()
        assert same(list(opened), frames[10:])
        assert opened.count == opened.length() == 20


def test_iteration_goes_on_where_it_stopped() -> None:
    frames = moving(6)
    with open_video(iter(frames)) as opened:
        opened.frame(1)
        first = next(iter(opened))
        assert same([first, *opened], frames)
        assert list(opened) == []


def test_errors_of_an_iterator_pass_through() -> None:
    def failing() -> Iterator[np.ndarray]:
        yield moving(1)[0]
        raise KeyError("of the caller")

    with open_video(failing()) as opened, pytest.raises(KeyError, match="of the caller"):
        list(opened)


@pytest.mark.parametrize("device", ["0", 0, "/dev/video9"])
def test_no_camera(device: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(video, "CAMERAS", {"linux": ("mp4", f"{tmp_path}/video{{}}")})
    with pytest.raises(VideoError, match=r"^camera .* can't be opened \(.*\); check") as caught:
        open_camera(device, size=(480, 640), fps=30)
    assert one_line(caught)


@pytest.mark.skipif(sys.platform != "linux" or Path("/dev/video99").exists(), reason="a camera")
def test_no_camera_on_linux() -> None:
    with pytest.raises(VideoError, match=r"^camera 99 \(/dev/video99\) can't be opened \(No such"):
        open_camera("99")


def test_system_without_cameras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "plan9")
    with pytest.raises(VideoError, match="can't be opened on plan9; give frames"):
        open_camera()


def test_camera_gives_frames_as_they_come(intra: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, seen = intra.parent, {}
    (folder / "video3").write_bytes(damaged(intra, LOST))
    wanted = moving(COUNT)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(video, "CAMERAS", {"linux": ("mov", f"{folder}/video{{}}")})
    av = decoder.load_av()

    def opened(*args: Any, container_options: dict[str, str], **kwargs: Any) -> Any:
        seen.update(container_options)
        return av.container.open(*args, **kwargs)

    monkeypatch.setattr(av, "open", opened)
    with open_camera(3, size=(480, 640), fps=29.97) as camera:
        assert isinstance(camera, Frames) and camera.fps == 25 and camera.count is None
        assert same(list(camera), wanted[:LOST] + wanted[LOST + 1 :])
    assert seen == {"video_size": "640x480", "framerate": "29.97"}


DECORD = Path(__file__).with_name("decord")


def grey_levels(pixels: np.ndarray) -> np.ndarray:
    """Return (S, S, 3) of a network's input (3, S, S), as what it was normalized from."""
    return (pixels.transpose(1, 2, 0) * image.STD + image.MEAN) * 255


@pytest.mark.parametrize("name", ["0/32", "0/96", "90/32", "180/32", "270/32"])
def test_inputs_of_a_video_file_are_decords(name: str) -> None:
    """Its figures are those of version 0.6.0, which SAM 2's own code reads such files with."""
    degrees, side = map(int, name.split("/"))
    with np.load(DECORD / "squares.npz") as file:
        wanted = file[name]
    with open_video(turned(DECORD / "plain.mp4", degrees), cache=1) as frames:
        for index in (1, 0):
            got = grey_levels(frames.input(index, side))
            assert np.abs(got - wanted[index]).max() < 0.01
            # Scaled after the colours were converted it would be another picture.
            late = grey_levels(image.to_input(frames.frame(index), side))
            assert np.abs(late - wanted[index]).max() > 5


def test_inputs_of_folders_and_of_arrays(tmp_path: Path) -> None:
    photos = moving(2)
    for index, photo in enumerate(photos):
        Image.fromarray(photo).save(tmp_path / f"{index}.png")
    paths = sorted(tmp_path.iterdir())
    wanted = np.asarray(Image.fromarray(photos[1]).resize((32, 32)))
    with open_video(tmp_path) as folder:
        assert np.abs(grey_levels(folder.input(1, 32)) - wanted).max() < 0.01
    plain = image.to_input(photos[1], 32)
    for source in (np.stack(photos), photos, paths, iter(photos)):
        with open_video(source) as frames:
            np.testing.assert_array_equal(frames.input(1, 32, threads=1), plain)
    assert np.abs(grey_levels(plain) - wanted).max() > 1


def test_input_of_a_frame_that_stands_in_for_a_damaged_one(intra: Path) -> None:
    with (
        pytest.warns(RuntimeWarning, match="stands in"),
        open_video(damaged(intra, 3), on_error="skip") as frames,
    ):
        np.testing.assert_array_equal(frames.input(3, 32), image.to_input(frames.frame(2), 32))
