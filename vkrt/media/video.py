"""Clips: opening whatever has frames in it, and cameras."""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np

from vkrt.arguments import choice, number, shown, whole
from vkrt.errors import VideoError
from vkrt.media.animation import WebpFrames, is_webp
from vkrt.media.array_frames import ArrayFrames
from vkrt.media.decoder import Decoder, load_av
from vkrt.media.frame_sources import IteratorFrames, SequenceFrames, list_pictures
from vkrt.media.frames import CACHE, Damage, Frames, OnError
from vkrt.media.image import Arrayed, Photo
from vkrt.media.photo_arrays import is_array
from vkrt.media.video_file import FileFrames

__all__ = ["Clip", "Frames", "OnError", "open_camera", "open_video"]

Clip: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | np.ndarray | Arrayed | Iterable[Photo]

# Frames to hold, number of a camera, and pixels along a side of its frames.
MAX_CACHE, MAX_CAMERA, MAX_SIDE = 1_000_000, 1_000_000, 65_536
ACCEPTED = (
    "give a folder of pictures, a video file, its bytes, a (T, H, W, 3) uint8 array, or a list or "
    "iterator of photos"
)
# For each system, what PyAV calls its cameras, and how it names the one with a number.
CAMERAS = {
    "linux": ("v4l2", "/dev/video{}"),
    "darwin": ("avfoundation", "{}"),
    "win32": ("dshow", "video={}"),
}


def open_video(source: Clip | Frames, cache: int = CACHE, on_error: OnError = "raise") -> Frames:
    """Return the frames of a clip, to be closed in the end, as by `with`.

    A network's input is made of them as SAM 2's own code does (Frames.input): of a folder with
    Pillow's bicubic filter, of a video file inside FFmpeg as decord has it, of anything else with
    the antialiased bilinear filter of single photos.

    The first frame of what can be read in any order is read at once. Videos are turned upright as
    their rotation says; a variable frame rate gives the frames as they come and the average as fps,
    without pauses of more than ten seconds.

    Args:
        source: a folder of pictures (in natural order: 2.jpg before 10.jpg), a file that PyAV
            decodes (MP4, MKV, WebM, AVI, GIF, APNG and more), an animated WebP, the bytes of such,
            or an open one; an array or tensor (T, H, W, 3), also with 1 or 4 channels, with the
            channels before the height, or grey (T, H, W), of the dtypes of read_image; a list or
            any iterator of photos; or Frames, returned as they are. Floats are in 0..1 if those of
            the whole array are, or of a list's or iterator's first frame that is not all black;
            else in 0..255.
        cache: how many frames to hold, for going backwards and for frames asked for again; up to
            1,000,000.
        on_error: what a damaged frame does: "raise" an error that names it, or "skip", which
            repeats the frame before it and warns once.

    Raises:
        VideoError: nothing is there, it has no frames, it is no clip, its first frame is damaged,
            or it is a video file and PyAV is missing.
        ImageError: the frames are too large.
    """
    cache = whole("cache", cache, 1, MAX_CACHE, kind=VideoError)
    choice("on_error", on_error, ("raise", "skip"), kind=VideoError)
    if isinstance(source, Frames):
        return source
    if is_array(source):
        frames = ArrayFrames(source, "the array", VideoError)
        return SequenceFrames(frames, "the array", cache, on_error)
    if isinstance(source, str | os.PathLike):
        return open_path(Path(source), cache, on_error)
    if isinstance(source, bytes | bytearray | memoryview):
        return open_stream(io.BytesIO(source), "the video", cache, on_error, owned=True)
    if hasattr(source, "read") and hasattr(source, "seek"):
        file = cast(BinaryIO, source)
        return open_stream(file, str(getattr(file, "name", "the video")), cache, on_error)
    if isinstance(source, Sequence):
        return SequenceFrames(cast(Sequence[Photo], source), "the list", cache, on_error)
    if isinstance(source, Iterable):
        return IteratorFrames(iter(source), "the iterator", cache, on_error)
    raise VideoError(f"a clip can't be a {type(source).__name__}; {ACCEPTED}")


def open_path(path: Path, cache: int, on_error: OnError) -> Frames:
    """Return the frames of a folder or file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise VideoError(f"{path} does not exist; check the path of the clip") from None
    except (OSError, ValueError) as error:
        raise VideoError(f"{path} can't be read ({error}); check the path") from None
    if stat.S_ISDIR(status.st_mode):
        return SequenceFrames(list_pictures(path), str(path), cache, on_error, filter="bicubic")
    if not stat.S_ISREG(status.st_mode):
        raise VideoError(f"{path} is neither a file nor a folder; for a camera take open_camera")
    if status.st_size == 0:
        raise VideoError(f"{path} is empty (0 bytes); give it again or make it anew")
    try:
        file = path.open("rb")
    except OSError as error:
        raise VideoError(f"{path} can't be opened ({error.strerror}); check its rights") from None
    try:
        return open_stream(file, str(path), cache, on_error, owned=True)
    except BaseException:
        file.close()
        raise


def open_stream(
    file: BinaryIO, name: str, cache: int, on_error: OnError, owned: bool = False
) -> Frames:
    """Return the frames of an open file."""
    try:
        kind = WebpFrames if is_webp(file) else FileFrames
    except (OSError, ValueError) as error:
        raise VideoError(f"{name} can't be read ({error}); give a file that can go back") from None
    return kind(file, name, cache, on_error, owned)


def open_camera(
    device: str | int = "0",
    size: tuple[int, int] | None = None,
    fps: float | None = None,
    cache: int = CACHE,
) -> Frames:
    """Return the live frames of a camera, to be closed in the end, as by `with`.

    Frames that arrive damaged are left out.

    Args:
        device: the camera's number, or its own name (Linux: /dev/video0; Windows: as the system
            shows it, since its cameras have no numbers).
        size: height and width to ask the camera for.
        fps: frames a second to ask the camera for.
        cache: how many frames to hold.

    Raises:
        VideoError: there is no such camera, it does not have the size or rate, or PyAV is missing.
        ImageError: the frames are too large.
    """
    if not isinstance(device, str):
        device = whole("device", device, 0, MAX_CAMERA, kind=VideoError)
    cache = whole("cache", cache, 1, MAX_CACHE, kind=VideoError)
    options = camera_options(size, fps)
    av = load_av()
    name = f"camera {device}"
    try:
        kind, pattern = CAMERAS[sys.platform]
    except KeyError:
        raise VideoError(f"{name} can't be opened on {sys.platform}; give frames instead") from None
    numbered = str(device).isdecimal() or sys.platform == "win32"
    place = pattern.format(device) if numbered else str(device)
    try:
        container = av.open(place, "r", format=kind, container_options=options)
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(
            f"{name} ({place}) can't be opened ({reason}); check that it is plugged in, free and "
            "has the size and rate asked for, or give a clip"
        ) from None
    decoder = Decoder(container, name)
    photos = sound_frames(decoder)
    return IteratorFrames(photos, name, cache, fps=decoder.fps, release=decoder.close)


def camera_options(size: Any, fps: Any) -> dict[str, str]:
    """Return what to ask a camera for.

    Raises:
        VideoError: no camera has it.
    """
    options = {}
    if size is not None:
        if not isinstance(size, Sequence) or isinstance(size, str | bytes) or len(size) != 2:
            raise VideoError(f"size must be a height and a width, not {shown(size)}")
        height, width = (
            whole(name, side, 1, MAX_SIDE, kind=VideoError)
            for name, side in zip(("height", "width"), size, strict=True)
        )
        options["video_size"] = f"{width}x{height}"
    if fps is not None:
        options["framerate"] = f"{number('fps', fps, 0.001, 100_000, kind=VideoError):g}"
    return options


def sound_frames(decoder: Decoder) -> Iterator[Any]:
    """Give the frames that arrive whole."""
    for picture in decoder:
        if picture.frame is None:
            continue
        try:
            pixels = decoder.to_rgb(picture.frame)
        except Damage:
            continue
        yield pixels
