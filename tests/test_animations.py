"""Animated pictures as clips: WebP, PNG and GIF, with what they keep of the frame before."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features
from reels import moving

from vkrt.errors import ImageError, VideoError
from vkrt.media.animation import read_durations
from vkrt.media.video import open_video

pytestmark = pytest.mark.skipif(not features.check("webp"), reason="this Pillow has no WebP")


def animated(frames: list[Image.Image], kind: str, **options: Any) -> bytes:
    """Return an animation's bytes."""
    stream = io.BytesIO()
    frames[0].save(stream, kind, save_all=True, append_images=frames[1:], **options)
    return stream.getvalue()


def canvases(data: bytes) -> list[np.ndarray]:
    """Return the frames as Pillow shows them."""
    picture = Image.open(io.BytesIO(data))
    shown = []
    for index in range(getattr(picture, "n_frames", 1)):
        picture.seek(index)
        shown.append(np.asarray(picture.convert("RGB")))
    return shown


def test_animated_webp(tmp_path: Path) -> None:
    frames = moving(6)
    pictures = [Image.fromarray(frame) for frame in frames]
    data = animated(pictures, "WEBP", lossless=True, duration=[40, 40, 40, 40, 40, 900])
    path = tmp_path / "clip.webp"
    path.write_bytes(data)
    for source in (path, data, io.BytesIO(data)):
        with open_video(source, cache=2) as opened:
            assert opened.count == opened.expected == 6 and opened.size == (48, 64)
            assert opened.fps == pytest.approx(25)
            assert np.array_equal(np.stack(list(opened)), np.stack(frames))
            for index in (5, 0, 3, 2):
                assert np.array_equal(opened.frame(index), frames[index])
            with pytest.raises(VideoError, match=r"no frame 6, only 6"):
                opened.frame(6)


def dot(canvas: np.ndarray, index: int, colour: tuple[int, ...]) -> None:
    """Draw one of four rectangles into (24, 32, C)."""
    canvas[4:12, 6 * index : 6 * index + 5] = colour


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("WEBP", {"lossless": True, "minimize_size": True}),
        ("PNG", {"blend": 1, "disposal": 0}),
        ("PNG", {"blend": 1, "disposal": [0, 2, 0, 0, 0]}),  # the first dot goes again
        ("PNG", {"blend": 0, "disposal": 1}),  # each goes, and leaves transparent black
    ],
)
def test_frames_that_go_on_what_is_there(kind: str, options: dict[str, Any]) -> None:
    """Frames hold what is new: it goes over what the one before leaves, or in its place."""
    ground = np.full((24, 32, 4), (200, 30, 40, 255), np.uint8)
    layers = []
    for index in range(4):
        layers.append(np.zeros((24, 32, 4), np.uint8))
        dot(layers[-1], index, (10, 60 * index, 250, 255))
    pictures = [Image.fromarray(each) for each in (ground, *layers)]
    data = animated(pictures, kind, duration=50, **options)

    canvas = ground[:, :, :3].copy()
    wanted = [canvas.copy()]
    for index in range(4):
        clear = kind == "WEBP" or options["blend"] == 0
        if clear:
            canvas[:] = 0
        dot(canvas, index, (10, 60 * index, 250))
        wanted.append(canvas.copy())
        if index == 0 and options.get("disposal") == [0, 2, 0, 0, 0]:
            canvas[:] = (200, 30, 40)
    with open_video(data) as opened:
        got = list(opened)
        assert opened.fps == pytest.approx(20)
    assert np.array_equal(np.stack(got), np.stack(wanted))


@pytest.mark.parametrize("disposal", [1, 2])
def test_gif_with_disposal(disposal: int) -> None:
    pictures = [Image.fromarray(frame).quantize(32) for frame in moving(5)]
    durations = [40, 40, 40, 40, 500]
    data = animated(pictures, "GIF", disposal=disposal, duration=durations, loop=0)
    wanted = canvases(data)
    with open_video(data) as opened:
        got = list(opened)
        assert opened.fps == pytest.approx(25)
    assert np.array_equal(np.stack(got), np.stack(wanted))


def test_still_webp_is_a_clip_of_one_frame() -> None:
    frame = moving(1)[0]
    data = animated([Image.fromarray(frame)], "WEBP", lossless=True)
    with open_video(data) as opened:
        assert opened.count == 1 and opened.fps is None
        assert np.array_equal(opened.frame(0), frame)


def test_damaged_webp(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [Image.fromarray(frame) for frame in moving(6)]
    data = bytearray(animated(frames, "WEBP", quality=90, duration=40))
    with pytest.raises(VideoError, match=r"the video is not a picture, or its header is damaged"):
        open_video(bytes(data[: len(data) // 2]))
    place = -1
    for _ in range(4):
        place = data.index(b"ANMF", place + 1)
    data[place + 32 : place + 48] = bytes(16)
    try:
        opened = open_video(bytes(data), on_error="skip")
    except VideoError:  # newer libraries look at all frames at once
        pass
    else:
        with opened, pytest.warns(RuntimeWarning, match="frame 3 of the video is damaged"):
            got = list(opened)
        assert len(got) == 6 and np.array_equal(got[3], got[2])
    monkeypatch.setattr("vkrt.media.image.MAX_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"a frame of the video is 64x48 .* over the limit"):
        open_video(animated(frames, "WEBP"))


def test_durations_of_files_that_are_cut() -> None:
    frames = [Image.fromarray(frame) for frame in moving(4)]
    data = animated(frames, "WEBP", duration=[10, 20, 30, 40])
    assert read_durations(io.BytesIO(data)) == [10, 20, 30, 40]
    for length in range(0, len(data), 7):
        found = read_durations(io.BytesIO(data[:length]))
        assert found == [10, 20, 30, 40][: len(found)]
