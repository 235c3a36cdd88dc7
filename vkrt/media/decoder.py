"""Decoding video with PyAV: one pass over a file or a camera, damage named frame by frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from vkrt.errors import VideoError
from vkrt.media.byte_layout import Apng, Boxes, ByteLayout, Flv, Gif, Riff
from vkrt.media.frames import Damage
from vkrt.media.image import check_size, max_pixels
from vkrt.media.ledger import Ledger, Picture
from vkrt.media.matroska import Matroska
from vkrt.media.packet_watch import PacketWatch
from vkrt.media.transport_stream import TransportStream

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame

__all__ = ["Decoder", "load_av", "open_file", "quarter_turns"]

READABLE = "give an MP4, MKV, WebM, AVI or GIF file, or a folder of pictures"
BUFFER = 1 << 18
# Errors in a row after which the rest of a file is given up.
PATIENCE = 8
QUARTER = 90
# Recordings of broadcasts, and bare streams: what comes before their first keyframe is no damage.
BEGINS_ANYWHERE = {"flv", "h264", "hevc", "m4v", "mpeg", "mpegts", "mpegvideo"}
# Where a packet may be one of the two fields of a frame.
FIELDS = {"h264", "hevc", "mpeg", "mpegts", "mpegvideo"}
# Codecs of which some packets are never shown, and those that an AVI does not time exactly.
HIDDEN = {"libvpx", "vp8"}
UNTIMED = {"h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4", "msmpeg4v2", "msmpeg4v3"}
LAYOUTS: dict[str, type[ByteLayout]] = {
    "apng": Apng,
    "avi": Riff,
    "flv": Flv,
    "gif": Gif,
    "matroska,webm": Matroska,
    "mov,mp4,m4a,3gp,3g2,mj2": Boxes,
    "mpegts": TransportStream,
}
# Seconds from one frame to the next beyond which they are of different parts.
PAUSE = 10.0
MICROSECONDS = 1_000_000
ROUNDING = 0.02


class Unnamed:
    """Show only the content of a file: a name's ending would make PyAV take a text for a film."""

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read
        self.seek = file.seek
        self.tell = file.tell


class Decoder(Iterator[Picture]):
    """Give the pictures of an open video in the order they are shown, damaged ones included.

    Args:
        container: what PyAV opened.
        name: what errors call it.
        file: what the container reads, None of a camera.

    Attributes:
        fps: frames a second, on average; None if unknown.
        claimed: the number of frames that the container states, which may be wrong; None if none.

    Raises:
        VideoError: there is no video in it, or in a format that is not supported.
        ImageError: the frames are too large.
    """

    def __init__(self, container: InputContainer, name: str, file: BinaryIO | None = None) -> None:
        av = load_av()
        stream: Any = container.streams.best("video")
        if stream is None or stream.codec_context is None:
            lack = "no video in it" if stream is None else "video that this PyAV can't decode"
            raise VideoError(f"{name} has {lack}; {READABLE}")
        self._error: type[Exception] = av.FFmpegError
        self._container = container
        self._stream = stream
        kind = container.format.name
        self._layout = None if file is None else LAYOUTS.get(kind, ByteLayout)(file)
        self._place: int | None = None  # of the last packet in the file
        context = stream.codec_context
        check_size(context.height or 1, context.width or 1, f"a frame of {name}")
        # A later frame that states a larger size is refused before it takes the memory.
        context.options = {"max_pixels": str(max_pixels())}
        rate = stream.average_rate or stream.guessed_rate
        self.fps: float | None = float(rate) if rate else None
        self.claimed: int | None = stream.frames or None
        self._reformatter = av.video.reformatter.VideoReformatter()
        self._pictures = self._walk()

    def __next__(self) -> Picture:
        return next(self._pictures)

    def seek(self, time: int) -> None:
        """Go on with the keyframe that is shown at a time, or with what comes first after it.

        Raises:
            OSError: the file does not allow it.
        """
        try:
            self._container.seek(time, stream=self._stream)
        except self._error as error:
            raise OSError(str(error)) from None
        self._pictures = (each for each in self._walk() if each.time is None or each.time >= time)

    def to_rgb(self, frame: VideoFrame) -> np.ndarray:
        """Return a frame as (H, W, 3) uint8 RGB, contiguous, upright.

        Raises:
            Damage: its colours are of a kind that can't be.
        """
        try:
            pixels = self._reformatter.reformat(frame, format="rgb24").to_ndarray()
        except (self._error, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise Damage(f"is damaged (no RGB: {reason})") from None
        return np.ascontiguousarray(np.rot90(pixels, quarter_turns(frame)))

    def average(self, times: Sequence[int]) -> float | None:
        """Return frames a second of frames at rising times; long pauses between parts do not count.

        It is what the file states unless that is more than times rounded to a file's unit explain.
        """
        unit = float(self._stream.time_base or 0)
        spans = [(after - before) * unit for before, after in pairwise(times)]
        played = [span for span in spans if span <= PAUSE]
        if not sum(played):
            return self.fps
        found = len(played) / sum(played)
        close = self.fps is not None and abs(found - self.fps) <= ROUNDING * self.fps
        return self.fps if close else found

    def shortfall(self, time: int | None) -> str | None:
        """Return what is missing at the end, by what the file states of itself; None if nothing.

        Args:
            time: of the last frame; None if times do not rise.
        """
        if self._layout is None or self._place is None:
            return None
        ended = self._layout.is_ended(self._place)
        if ended:
            return None
        stated, found = self._stated(), 0.0 if time is None else self._seconds(time)
        # A structure that is cut short needs no doubt; else only time tells.
        doubt = 0.0 if ended is False else max(2 / (self.fps or 1), stated / 10)
        if stated and time is not None and stated - found > doubt:
            return f"ends after {found:.2f} s, but states {stated:.2f} s"
        return "is not as long as it states" if ended is False else None

    def _stated(self) -> float:
        """Return how many seconds the file states to have, 0 if it does not say."""
        stated = (self._stream.duration or 0) * float(self._stream.time_base or 0)
        if not stated and len(self._container.streams) == 1:
            stated = (self._container.duration or 0) / MICROSECONDS
        return stated

    def _seconds(self, time: int) -> float:
        """Return the seconds from the start to the end of a frame."""
        start = self._stream.start_time or 0
        return (time - start) * float(self._stream.time_base or 0) + 1 / (self.fps or 1)

    def close(self) -> None:
        """Close the container."""
        self._pictures = iter(())
        self._container.close()

    def _walk(self) -> Iterator[Picture]:
        """Give the pictures from here on."""
        ledger = self._open_ledger()
        begun = self._container.format.name not in BEGINS_ANYWHERE
        watch = PacketWatch(self._layout, ledger)
        for packet in self._packets():
            if packet is None:
                watch.note_error()
                continue
            if packet.size:
                self._place = packet.pos
                begun = begun or packet.is_keyframe
                whole = watch.check(packet)
            elif packet.pts is None:  # after the last one, for what the decoder held back
                watch.finish()
            frames, sound = self._decode(packet)
            if packet.size and begun and not packet.is_discard:
                if packet.pts is not None:
                    ledger.enter(packet.pts, packet.is_keyframe, sound and whole)
                elif not sound:
                    yield Picture(None, None)
            for frame in frames:
                yield from ledger.settle(frame)
        yield from ledger.close()
        if watch.failed:
            yield Picture(None, None)

    def _open_ledger(self) -> Ledger:
        """Return a ledger for this kind of file."""
        kind, codec = self._container.format.name, self._stream.codec_context.name
        hidden = codec in HIDDEN or (kind == "avi" and codec in UNTIMED)
        # Frames of a camera don't wait to see whether an earlier one still comes.
        one_each = not hidden and self._layout is not None
        return Ledger(one_each, self._step(), kind in FIELDS)

    def _step(self) -> float | None:
        """Return how long a frame is shown, in the stream's unit, on average."""
        unit = float(self._stream.time_base or 0)
        return 1 / (self.fps * unit) if self.fps and unit else None

    def _packets(self) -> Iterator[Any]:
        """Give the packets of the stream, one None for each stretch that can't be read."""
        failures = 0
        while failures < PATIENCE:
            try:
                for packet in self._container.demux(self._stream):
                    failures = 0
                    yield packet
                return
            except IndexError:
                failures += 1  # a packet of a stream that damage made up
            except self._error:
                failures += 1
                if failures == 1:
                    yield None

    def _decode(self, packet: Any) -> tuple[list[VideoFrame], bool]:
        """Return the frames that a packet completes, and whether it took that."""
        try:
            return packet.decode(), True
        except self._error:
            return [], False


def open_file(file: BinaryIO, name: str) -> Decoder:
    """Return a decoder at the start of an open file, which stays open.

    Raises:
        VideoError: it is no video, or PyAV is missing.
    """
    av = load_av()
    # A playlist could name files and addresses of its own, so nothing but this one file is read.
    options: dict[str, Any] = {
        "container_options": {"protocol_whitelist": "none"},
        "buffer_size": BUFFER,
    }
    try:
        file.seek(0)
        try:
            container = av.open(Unnamed(file), "r", **options)
        except UnicodeDecodeError:
            file.seek(0)
            container = av.open(Unnamed(file), "r", metadata_errors="replace", **options)
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(f"{name} is not a video, or cut off ({reason}); {READABLE}") from None
    try:
        return Decoder(container, name, file)
    except BaseException:
        container.close()
        raise


def quarter_turns(frame: VideoFrame) -> int:
    """Return by how many quarters, 0 to 3, a frame is to be turned counterclockwise."""
    return round(frame.rotation / QUARTER) % 4


def load_av() -> Any:
    """Return the module of PyAV.

    Raises:
        VideoError: it is not installed.
    """
    try:
        return import_module("av")
    except ImportError as error:
        raise VideoError(
            f"video files and cameras need PyAV ({error}); run pip install 'vkrt[video]'"
        ) from None
