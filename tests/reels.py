"""Small clips for tests, made with PyAV: whole, damaged and odd ones."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

__all__ = [
    "damaged",
    "decode_all",
    "moving",
    "number_of",
    "numbered",
    "packet_places",
    "turned",
    "write_clip",
]

HEIGHT, WIDTH = 48, 64


def moving(count: int, height: int = HEIGHT, width: int = WIDTH) -> list[np.ndarray]:
    """Return frames (height, width, 3) uint8 of a square that moves over a gradient."""
    y, x = np.mgrid[:height, :width]
    ground = np.stack((x * 3, y * 4, x + y), axis=-1).astype(np.uint8)
    frames = []
    for index in range(count):
        frame = ground.copy()
        left = 4 * index % (width - 10)
        frame[height // 4 : height // 2, left : left + 10] = (250, 40, 40)
        frames.append(frame)
    return frames


def numbered(count: int, height: int = HEIGHT, width: int = WIDTH) -> list[np.ndarray]:
    """Return frames like those of moving, each with its number in six light or dark squares."""
    frames = moving(count, height, width)
    for number, frame in enumerate(frames):
        for bit in range(6):
            frame[30:40, 2 + 10 * bit : 10 + 10 * bit] = 235 if number >> bit & 1 else 20
    return frames


def number_of(frame: np.ndarray) -> int:
    """Return the number that a frame has in it, also after lossy coding."""
    squares = [frame[32:38, 4 + 10 * bit : 8 + 10 * bit].mean() for bit in range(6)]
    return sum(1 << bit for bit, level in enumerate(squares) if level > 127)


def write_clip(
    path: Path,
    frames: Iterable[np.ndarray],
    codec: str = "libx264",
    format: str | None = None,
    pixels: str = "yuv420p",
    times: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
    encoding: str = "utf-8",
    gop: int = 10,
    last: int | None = None,
    encoder: dict[str, str] | None = None,
    sound: str | None = None,
) -> Path:
    """Write frames at 25 a second, or at `times` in 25ths of a second, a keyframe every `gop`.

    The last frame is shown for `last` 25ths of a second. `options` are the container's, `encoder`
    those of the codec. `sound` is a codec for a tone beside it.
    """
    with av.open(
        str(path), "w", format=format, options=options or {}, metadata_encoding=encoding
    ) as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream(codec, rate=25, options=encoder or {})
        tone = container.add_stream(sound, rate=48000, layout="mono") if sound else None
        context = stream.codec_context
        packets: list[av.Packet] = []
        for index, frame in enumerate(frames):
            if index == 0:
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = pixels
                context.gop_size = gop
                context.max_b_frames = 2 if codec in ("libx264", "mpeg4") and gop > 1 else 0
            picture = av.VideoFrame.from_ndarray(frame, "rgb24").reformat(format=pixels)
            picture.pts = times[index] if times else index
            picture.time_base = Fraction(1, 25)
            packets += stream.encode(picture)
        packets += stream.encode(None)
        if last is not None:
            max(packets, key=lambda packet: packet.pts or 0).duration = last
        packets += [] if tone is None else encode_tone(tone, len(packets) / 25)
        for packet in sorted(packets, key=lambda each: (each.dts or 0) * each.time_base):
            container.mux(packet)
    return path


def encode_tone(stream: av.AudioStream, seconds: float) -> list[av.Packet]:
    """Return the packets of a tone."""
    packets = []
    size = stream.codec_context.frame_size or 1024
    for begin in range(0, int(seconds * 48000), size):
        wave = np.sin(np.arange(begin, begin + size) / 20).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, begin, Fraction(1, 48000)
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def decode_all(path: Path) -> list[np.ndarray]:
    """Return all frames, decoded from the start by PyAV alone."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def packet_places(path: Path) -> list[tuple[int, int]]:
    """Return where the packets of a clip are, in the order they are stored, and their sizes."""
    with av.open(str(path)) as container:
        return [(each.pos or 0, each.size) for each in container.demux(video=0) if each.size]


def damaged(path: Path, frame: int) -> bytes:
    """Return a clip's bytes with the data of one frame overwritten by noise."""
    with av.open(str(path)) as container:
        stored = [packet for packet in container.demux(video=0) if packet.size]
        packet = sorted(stored, key=lambda each: each.pts or 0)[frame]
        place, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    assert place is not None
    begin = min(32, size // 4)  # past what the container has before it
    noise = np.random.default_rng(1).integers(0, 256, size - begin, np.uint8)
    data[place + begin : place + size] = noise.tobytes()
    return bytes(data)


def turned(path: Path, degrees: int) -> io.BytesIO:
    """Return an MP4 whose header says to turn it counterclockwise, as phones write it."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # version 0 of that header
    cosine, sine = round(np.cos(np.radians(degrees))), round(np.sin(np.radians(degrees)))
    for place, value in ((0, cosine), (4, -sine), (12, sine), (16, cosine)):
        entry = (value * 0x10000).to_bytes(4, "big", signed=True)
        data[matrix + place : matrix + place + 4] = entry
    return io.BytesIO(bytes(data))
