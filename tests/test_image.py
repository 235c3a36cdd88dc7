"""Photos: every kind that must work, every kind that must be refused, and the resize."""

from __future__ import annotations

import io
import itertools
import os
import struct
import warnings
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from vkrt.errors import ImageError
from vkrt.media import fallback, image, native
from vkrt.media.image import MAX_PIXELS, MEAN, STD, read_image, to_input

OPERATIONS = [fallback, native.operations] if native.available() else [fallback]


def noise(*shape: int) -> np.ndarray:
    """Return random bytes, the same for the same shape."""
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    """Return the bytes of a picture file."""
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that states a size and has next to no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 64))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


# --- pictures that work


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats(kind: str) -> None:
    pixels = noise(7, 5, 3)
    got = read_image(encoded(Image.fromarray(pixels), kind))
    assert got.dtype == np.uint8 and got.flags.c_contiguous
    assert np.array_equal(got, pixels)


@pytest.mark.parametrize(("kind", "within"), [("JPEG", 12), ("WEBP", 12), ("GIF", 60)])
def test_lossy_formats(kind: str, within: int) -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    pixels = np.stack([np.tile(ramp, (48, 1))] * 3, axis=-1)
    got = read_image(encoded(Image.fromarray(pixels), kind))
    assert got.shape == pixels.shape
    assert np.abs(got.astype(int) - pixels).max() <= within


def test_sources_agree(tmp_path: Path) -> None:
    pixels = noise(9, 6, 3)
    data = encoded(Image.fromarray(pixels), "PNG")
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    for source in (path, str(path), data, bytearray(data), Image.fromarray(pixels), pixels):
        assert np.array_equal(read_image(source), pixels)
    with Image.open(path) as lazy:
        assert np.array_equal(read_image(lazy), pixels)
    assert read_image(pixels) is pixels


def test_grey_and_one_bit() -> None:
    grey = noise(8, 9)
    assert np.array_equal(read_image(encoded(Image.fromarray(grey), "PNG"))[:, :, 1], grey)
    bits = Image.fromarray(grey > 100)
    assert bits.mode == "1"
    got = read_image(encoded(bits, "PNG"))
    assert np.array_equal(got[:, :, 2], np.where(grey > 100, 255, 0))


def test_palette() -> None:
    picture = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), mode=None).convert("P")
    picture.putpalette([10, 20, 30, 200, 100, 50, 1, 2, 3] + [0] * 759)
    got = read_image(encoded(picture, "PNG"))
    assert got.tolist() == [[[10, 20, 30], [200, 100, 50]], [[1, 2, 3], [200, 100, 50]]]


def test_alpha_is_dropped() -> None:
    pixels = noise(4, 6, 4)
    got = read_image(encoded(Image.fromarray(pixels, "RGBA"), "PNG"))
    assert np.array_equal(got, pixels[:, :, :3])
    grey = noise(4, 6, 2)
    got = read_image(encoded(Image.fromarray(grey, "LA"), "PNG"))
    assert np.array_equal(got[:, :, 0], grey[:, :, 0])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled(kind: str) -> None:
    values = np.array([[0, 255, 256], [32768, 65535, 12345]], np.uint16)
    got = read_image(encoded(Image.fromarray(values), kind))
    assert np.array_equal(got[:, :, 0], values >> 8)
    assert np.array_equal(got[:, :, 0], got[:, :, 2])


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bit_modes(order: str) -> None:
    values = np.array([[0, 700], [40000, 65535]], order)
    mode = {"<u2": "I;16", ">u2": "I;16B"}[order]
    picture = Image.frombytes(mode, (2, 2), values.tobytes())
    assert read_image(picture)[:, :, 0].tolist() == [[0, 2], [156, 255]]
    wide = Image.fromarray(values.astype(np.int32))
    assert wide.mode == "I"
    assert read_image(wide)[:, :, 0].tolist() == [[0, 2], [156, 255]]


def test_thirty_two_bit_grey_is_refused() -> None:
    picture = Image.fromarray(np.array([[0, 70000]], np.int32))
    with pytest.raises(ImageError, match="beyond 16 bits"):
        read_image(picture)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [([[0.0, 0.5, 1.0]], [0, 128, 255]), ([[0.0, 99.6, 255.0]], [0, 100, 255])],
)
def test_float_tiff(values: list[list[float]], wanted: list[int]) -> None:
    data = encoded(Image.fromarray(np.array(values, np.float32)), "TIFF")
    assert read_image(data)[0, :, 0].tolist() == wanted


@pytest.mark.parametrize("bad", [-0.5, 256.0, np.nan, np.inf])
def test_float_beyond_its_range(bad: float) -> None:
    picture = Image.fromarray(np.array([[0.0, bad]], np.float32))
    with pytest.raises(ImageError, match=r"scale them to 0\.\.1"):
        read_image(picture)


def test_cmyk() -> None:
    colours = np.array(
        [[[255, 0, 0, 0], [0, 255, 0, 0]], [[0, 0, 255, 0], [0, 0, 0, 255]]], np.uint8
    )
    got = read_image(encoded(Image.fromarray(colours, "CMYK"), "TIFF"))
    assert got.tolist() == [[[0, 255, 255], [255, 0, 255]], [[255, 255, 0], [0, 0, 0]]]
    flat = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(read_image(encoded(flat, "JPEG")).astype(int) - [255, 0, 0]).max() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "I;16"])
def test_exif_rotation(orientation: int, mode: str) -> None:
    upright = noise(4, 6, 3)
    # How a camera that is held this way stores the picture.
    store = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    stored = np.ascontiguousarray(store(upright))
    if mode == "I;16":
        stored = stored[:, :, 0].astype(np.uint16) * 257
        upright = np.repeat(upright[:, :, :1], 3, axis=2)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(stored), "PNG", exif=exif.tobytes())
    assert np.array_equal(read_image(data), upright)
    kept = stored if mode == "RGB" else np.repeat((stored >> 8)[:, :, None], 3, axis=2)
    for source in (data, Image.open(io.BytesIO(data))):
        assert np.array_equal(read_image(source, upright=False), kept)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_turns_nothing() -> None:
    pixels = noise(4, 6, 3)
    data = encoded(Image.fromarray(pixels), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert np.array_equal(read_image(data), pixels)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read_image(data)[0, 0].tolist() == [255, 0, 0]


def test_arrays() -> None:
    pixels = noise(5, 7, 4)
    assert np.array_equal(read_image(pixels), pixels[:, :, :3])
    for grey in (pixels[:, :, 0], pixels[:, :, :1]):
        got = read_image(grey)
        assert got.shape == (5, 7, 3) and np.array_equal(got[:, :, 1], pixels[:, :, 0])
    turned = pixels[:, ::-1, :3]
    got = read_image(turned)
    assert got.flags.c_contiguous and np.array_equal(got, turned)


# --- pictures that are refused


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5, 4, 2), np.uint8),
        np.zeros((5, 40, 40), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_wrong_arrays_say_what_is_expected(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"must be \(H, W, 3\) uint8"):
        read_image(array)


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (0, 0), (0, 5, 1)])
def test_arrays_without_pixels(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="no pixels"):
        read_image(np.zeros(shape, np.uint8))


def test_picture_without_pixels() -> None:
    with pytest.raises(ImageError, match="no pixels"):
        read_image(Image.new("RGB", (0, 4)))


def test_wrong_type() -> None:
    with pytest.raises(ImageError, match="can't be a int"):
        read_image(7)  # type: ignore[arg-type]


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="does not exist"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="not a regular file"):
        read_image(os.devnull)
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(ImageError, match="check the path"):
            read_image(name)


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.png"
    path.touch()
    with pytest.raises(ImageError, match=r"empty\.png is empty"):
        read_image(path)
    with pytest.raises(ImageError, match="is empty"):
        read_image(b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "GIF", "PPM"])
@pytest.mark.parametrize("share", [0.4, 0.9])
def test_truncated(kind: str, share: float) -> None:
    data = encoded(Image.fromarray(noise(64, 64, 3)), kind)
    with pytest.raises(ImageError, match="truncated"):
        read_image(data[: int(len(data) * share)])


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "GIF", "PPM", "WEBP"])
def test_cut_anywhere_gives_one_line(kind: str) -> None:
    data = encoded(Image.fromarray(noise(16, 16, 3)), kind)
    for length in range(1, len(data) - 1, max(1, len(data) // 60)):
        try:
            got = read_image(data[:length])
        except ImageError as error:
            assert "\n" not in str(error)
        else:
            assert got.shape == (16, 16, 3)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["PNG", "JPEG", "TIFF", "BMP", "GIF", "PPM", "WEBP"]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_bytes_never_escape(kind: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(encoded(Image.fromarray(noise(12, 10, 3)), kind))
    for place, value in changes:
        data[place % len(data)] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd tags; only what is raised counts
        try:
            got = read_image(bytes(data))
        except ImageError as error:
            assert "\n" not in str(error)
        else:
            assert got.ndim == 3 and got.dtype == np.uint8


def test_not_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("not a picture at all, whatever its name says")
    with pytest.raises(ImageError, match=r"notes\.png is not a picture"):
        read_image(path)


def test_format_outside_the_list() -> None:
    data = encoded(Image.fromarray(noise(8, 8, 3)), "TGA")
    with pytest.raises(ImageError, match="not a picture"):
        read_image(data)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    pixels = np.stack([np.tile(ramp, (48, 1))] * 3, axis=-1)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "photo.avif"
    Image.fromarray(pixels).save(path, quality=90, exif=exif)
    for source in (path, path.read_bytes()):
        assert np.abs(read_image(source, upright=False).astype(int) - pixels).max() <= 12
        assert np.array_equal(read_image(source), np.rot90(read_image(source, upright=False), -1))
    with pytest.raises(ImageError, match="is damaged, or an AVIF that this Pillow can't read"):
        read_image(path.read_bytes()[:40])


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (HEIC, r"is a HEIC photo, .*; pip install pillow-heif and call .*register_heif_opener"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isomavc1", "is a video .*; give one of its frames"),
        (b"\x1aE\xdf\xa3" + bytes(60), "is a video .*; give one of its frames"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60), "is a JPEG 2000 file; open it with Pillow"),
        (b"<!DOCTYPE html><html>Not found", "is a web page or SVG, .*; check the download"),
        (b"%PDF-1.7", "is a PDF; export"),
        (b"\x93NUMPY\x01\0", r"is a numpy array; give numpy\.load"),
        (b"version https://git-lfs.github.com/spec/v1", "is a pointer of Git LFS; get"),
        (bytes(100), "is not a picture, or its header is damaged; give a JPEG, PNG, WebP, AVIF"),
    ],
)
def test_files_of_other_kinds_are_named(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        read_image(data)
    assert "\n" not in str(caught.value)


def test_formats_that_pillow_alone_reads_go_as_pictures() -> None:
    pixels = noise(16, 16, 3)
    for kind in ("TGA", "ICO"):
        data = encoded(Image.fromarray(pixels), kind)
        with pytest.raises(ImageError, match="open it with Pillow and give that picture"):
            read_image(data)
        assert np.array_equal(read_image(Image.open(io.BytesIO(data))), pixels)


def test_heif_once_it_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = noise(8, 8, 3)

    def opened(stream: io.BytesIO, name: str) -> Image.Image:
        assert stream.read(12).endswith(b"ftypheic")
        return Image.fromarray(pixels)

    opener = (opened, lambda prefix: prefix[4:8] == b"ftyp")
    monkeypatch.setitem(Image.OPEN, "HEIF", opener)
    assert np.array_equal(read_image(HEIC), pixels)


def test_header_of_two_gigapixels(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    with pytest.raises(ImageError, match="50000x40000 = 2000 megapixels, over the limit of 100"):
        read_image(png_header(50000, 40000))


def test_pillows_own_limit_stays_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(noise(30, 30, 3)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(data).shape == (30, 30, 3)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        assert read_image(data).shape == (30, 30, 3)


def test_pillows_own_limit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(noise(30, 30, 3)), "WEBP")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match=r"over Pillow's own limit .*PIL\.Image\.MAX_IMAGE_PIXELS"):
        read_image(data)


def test_limit_can_be_raised_and_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    data = png_header(16320, 12240)
    with pytest.raises(
        ImageError,
        match=r"16320x12240 = 200 megapixels, over the limit of 100; make it smaller first or "
        r"raise the limit with VKRT_MAX_MEGAPIXELS=200 \(at most 1000\)",
    ):
        read_image(data)
    monkeypatch.setenv("VKRT_MAX_MEGAPIXELS", "200")
    with pytest.raises(ImageError, match=r"truncated|damaged"):  # so it was decoded
        read_image(data)
    monkeypatch.setenv("VKRT_MAX_MEGAPIXELS", "1000")
    with pytest.raises(ImageError, match=r"over the limit of 1000; make it smaller first$"):
        read_image(png_header(50000, 40000))
    monkeypatch.setenv("VKRT_MAX_MEGAPIXELS", "1.5")
    large = Image.new("L", (1500, 1001))
    with pytest.raises(ImageError, match=r"over the limit of 1\.5; .*VKRT_MAX_MEGAPIXELS=2 "):
        read_image(encoded(large, "PNG"))
    assert read_image(large).shape == (1001, 1500, 3)  # it is in memory already


@pytest.mark.parametrize("value", ["0", "-5", "1001", "nan", "inf", "many", "1e400"])
def test_limits_that_can_not_be(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VKRT_MAX_MEGAPIXELS", value)
    with pytest.raises(ImageError, match="VKRT_MAX_MEGAPIXELS must be a number from 1 to 1000"):
        read_image(encoded(Image.fromarray(noise(3, 3, 3)), "PNG"))


def test_limit_is_inclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_PIXELS == 100_000_000
    monkeypatch.setattr(image, "MAX_PIXELS", 900)
    assert read_image(noise(30, 30, 3)).shape == (30, 30, 3)
    with pytest.raises(ImageError, match="31x30"):
        read_image(encoded(Image.fromarray(noise(30, 31, 3)), "PNG"))


# --- the network's input


def reference_input(photo: np.ndarray, size: int, dtype: torch.dtype) -> np.ndarray:
    """Return what SAM 2's image path computes, with torch."""
    tensor = torch.from_numpy(photo).permute(2, 0, 1)[None].to(dtype) / 255
    small = torch.nn.functional.interpolate(
        tensor, (size, size), mode="bilinear", antialias=True, align_corners=False
    )[0]
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return ((small - mean) / std).numpy()


def check_input(got: np.ndarray, photo: np.ndarray, size: int) -> None:
    """Assert an input close to torch's, and no further from the exact one than torch is."""
    exact = reference_input(photo, size, torch.float64)
    single = reference_input(photo, size, torch.float32)
    own_error = np.abs(single - exact).max()
    assert got.dtype == np.float32 and got.shape == (3, size, size)
    assert np.abs(got - exact).max() <= 2 * own_error + 1e-6
    assert np.abs(got - single).max() < 5e-5


@pytest.mark.parametrize("operations", OPERATIONS, ids=lambda module: module.__name__)
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (1, 1, 8),
        (1, 50, 33),
        (50, 1, 33),
        (63, 123, 64),
        (37, 21, 96),
        (64, 64, 64),
        (401, 600, 128),
    ],
)
def test_resize_is_torchs(
    operations: object, height: int, width: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "operations", operations)
    photo = noise(height, width, 3)
    check_input(to_input(photo, size), photo, size)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 70), st.integers(1, 4))
def test_resize_of_any_shape(height: int, width: int, size: int, threads: int) -> None:
    photo = noise(height, width, 3)
    check_input(to_input(photo, size, threads=threads), photo, size)


@pytest.mark.parametrize("operations", OPERATIONS, ids=lambda module: module.__name__)
def test_input_into_a_buffer(operations: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "operations", operations)
    photo = noise(20, 31, 3)
    out = np.full((3, 16, 16), np.nan, np.float32)
    got = to_input(photo, 16, out=out)
    assert np.shares_memory(got, out) and np.array_equal(out, to_input(photo, 16))


def test_input_of_a_view() -> None:
    photo = noise(20, 31, 3)
    view = photo[::2, ::-1]
    assert np.array_equal(to_input(view, 16), to_input(np.ascontiguousarray(view), 16))
    with pytest.raises(ImageError, match="uint8"):
        to_input(photo.astype(np.float32), 16)


ROWS = (1, 2, 7, 48, 63, 64, 65, 123, 480)
COLUMNS = (1, 3, 33, 64, 100, 119, 333)
SQUARES = (1, 5, 32, 64, 65, 131)


def sharp(height: int, width: int) -> np.ndarray:
    """Return a photo (height, width, 3) uint8 whose filtered values go beyond both ends."""
    values = np.random.default_rng(height * width).integers(0, 2, (height, width, 3)) * 255
    values[: height // 2] = noise(height // 2, width, 3)
    return values.astype(np.uint8)


@pytest.mark.parametrize("operations", OPERATIONS)
@pytest.mark.parametrize("size", SQUARES)
def test_bicubic_is_pillows_to_the_bit(
    size: int, operations: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "operations", operations)
    monkeypatch.setattr(image, "SCALE", (1.0, 1.0, 1.0))
    monkeypatch.setattr(image, "BIAS", (0.0, 0.0, 0.0))
    for height, width in itertools.product(ROWS, COLUMNS):
        photo = sharp(height, width)
        wanted = np.asarray(Image.fromarray(photo).resize((size, size))).transpose(2, 0, 1)
        got = to_input(photo, size, filter="bicubic")
        assert got.dtype == np.float32 and np.array_equal(got, wanted), (height, width)


@pytest.mark.parametrize("size", SQUARES)
def test_bilinear_is_pillows_on_floats(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "SCALE", (1.0, 1.0, 1.0))
    monkeypatch.setattr(image, "BIAS", (0.0, 0.0, 0.0))
    bilinear = Image.Resampling.BILINEAR
    for height, width in itertools.product(ROWS, COLUMNS):
        photo = sharp(height, width)
        planes = [Image.fromarray(photo[:, :, c].astype(np.float32)) for c in range(3)]
        wanted = np.stack([np.asarray(p.resize((size, size), bilinear)) for p in planes])
        assert np.abs(to_input(photo, size) - wanted).max() < 1e-3, (height, width)


def test_bicubic_is_normalized_like_bilinear() -> None:
    photo = noise(40, 60, 3)
    small = np.asarray(Image.fromarray(photo).resize((32, 32))) / 255
    wanted = ((small - image.MEAN) / image.STD).transpose(2, 0, 1)
    out = np.empty((3, 32, 32), np.float32)
    for threads in (1, 3):
        assert to_input(photo, 32, out, threads, "bicubic") is out
        np.testing.assert_allclose(out, wanted, atol=1e-6)
    assert np.abs(to_input(photo, 32) - wanted).max() > 0.1
