"""Forms of the same photo: arrays, tensors, lists and open files, in every common layout."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vkrt
from vkrt.errors import ImageError
from vkrt.media.array_frames import ArrayFrames
from vkrt.media.image import read_image
from vkrt.media.photo_arrays import FloatScale
from vkrt.media.photo_lists import read_photos, split_batch

PHOTO = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
PHOTO[0, 0], PHOTO[0, 1] = 0, 255
GREY = np.repeat(PHOTO[:, :, :1], 3, axis=2)


class Masked(np.ndarray):
    """Be a subclass of numpy's array."""


def alpha(photo: np.ndarray) -> np.ndarray:
    return np.dstack([photo, np.full(photo.shape[:2], 9, photo.dtype)])


FORMS: dict[str, Callable[[], Any]] = {
    "view of BGR": lambda: np.ascontiguousarray(PHOTO[..., ::-1])[..., ::-1],
    "Fortran order": lambda: np.asfortranarray(PHOTO),
    "read-only": lambda: np.frombuffer(PHOTO.tobytes(), np.uint8).reshape(PHOTO.shape),
    "subclass": lambda: PHOTO.view(Masked),
    "RGBA": lambda: alpha(PHOTO),
    "channels first": lambda: np.ascontiguousarray(PHOTO.transpose(2, 0, 1)),
    "RGBA, channels first": lambda: alpha(PHOTO).transpose(2, 0, 1),
    "float32 in 0..1": lambda: (PHOTO / 255).astype(np.float32),
    "float16 in 0..1": lambda: (PHOTO / 255).astype(np.float16),
    "float64 in 0..255": lambda: PHOTO.astype(np.float64),
    "float32 in 0..255 that was resized": lambda: PHOTO.astype(np.float32) + np.float32(0.3),
    "floats a little beyond 0..1": lambda: PHOTO / 255 * 1.002 - 0.001,
    "uint16": lambda: PHOTO.astype(np.uint16) * 257,
    "big-endian uint16": lambda: (PHOTO.astype(np.uint16) * 256).astype(">u2"),
    "int64": lambda: PHOTO.astype(np.int64),
    "uint32": lambda: PHOTO.astype(np.uint32),
    "lists": lambda: PHOTO.tolist(),
    "lists of floats": lambda: (PHOTO / 255).tolist(),
    "tensor": lambda: torch.from_numpy(PHOTO),
    "tensor, channels first": lambda: torch.from_numpy(PHOTO).permute(2, 0, 1),
    "tensor of float32": lambda: torch.from_numpy(PHOTO) / 255,
    "tensor with gradients": lambda: (torch.from_numpy(PHOTO) / 255).requires_grad_(),
    "tensor of float64 in 0..255": lambda: torch.from_numpy(PHOTO).double(),
    "tensor of float16": lambda: (torch.from_numpy(PHOTO) / 255).half(),
    "tensor of int16": lambda: torch.from_numpy(PHOTO).short(),
    "tensor of uint16": lambda: torch.from_numpy(PHOTO.astype(np.uint16) * 256),
    "PIL image": lambda: Image.fromarray(PHOTO),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_one_photo_agree(form: str) -> None:
    got = read_image(FORMS[form]())
    assert type(got) is np.ndarray and got.dtype == np.uint8 and got.flags.c_contiguous
    assert np.array_equal(got, PHOTO)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_tensors_that_numpy_lacks(dtype: torch.dtype) -> None:
    tensor = (torch.from_numpy(PHOTO) / 255).to(dtype)
    wanted = (tensor.float() * 255).round().to(torch.uint8).numpy()
    assert np.array_equal(read_image(tensor), wanted)


@pytest.mark.parametrize(
    "grey",
    [
        PHOTO[:, :, 0],
        PHOTO[:, :, :1],
        PHOTO[None, :, :, 0],
        PHOTO[:, :, 0] / 255,
        PHOTO[:, :, 0].tolist(),
        torch.from_numpy(PHOTO[:, :, 0]),
    ],
)
def test_grey_forms_agree(grey: Any) -> None:
    assert np.array_equal(read_image(grey), GREY)


def test_bool_is_black_and_white() -> None:
    for mask in (PHOTO > 100, torch.from_numpy(PHOTO > 100)):
        assert np.array_equal(read_image(mask), np.where(PHOTO > 100, 255, 0))


def test_the_last_dimension_holds_the_channels_if_it_can() -> None:
    for shape in ((3, 9, 3), (4, 9, 3), (1, 9, 3)):
        photo = np.resize(PHOTO, shape)
        assert np.array_equal(read_image(photo), photo)


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        (PHOTO[None], r"must be .* not \(1, 5, 7, 3\) uint8; that is a batch: give one"),
        (PHOTO.reshape(-1), r"must be \(H, W, 3\) uint8 RGB or alike, not \(105,\) uint8; give"),
        (PHOTO[:, :, :2], r"not \(5, 7, 2\) uint8; give"),
        (np.float32(3), r"not \(\) float32; give"),
        (PHOTO.astype(complex), r"not \(5, 7, 3\) complex128; give"),
        (PHOTO.astype(object), r"not \(5, 7, 3\) object; give"),
        (PHOTO.astype(str), r"not \(5, 7, 3\) <U3; give"),
        (PHOTO.astype(int) - 1, r"int64 with values from -1 to 254; give 0\.\.255"),
        (PHOTO.astype(np.int32) * 257, r"int32 with values from 0 to 65535; .* as uint16"),
        (PHOTO / 255 * 1.5, r"float values from 0 to 1\.5; scale them to 0\.\.1 or"),
        (PHOTO / 127.5 - 1, r"float values from -1 to 1; scale"),
        (PHOTO * 2.0, r"float values from 0 to 510; scale"),
        (np.where(PHOTO == 255, np.nan, PHOTO), r"not finite numbers; replace them first"),
        (np.where(PHOTO == 255, np.inf, PHOTO), r"not finite numbers"),
        (np.ma.masked_equal(PHOTO, 255), r"has masked values; fill them first"),
        (torch.from_numpy(PHOTO).to(torch.complex64), r"complex64; give"),
        (torch.empty(5, 7, 3, device="meta"), r"can't be made a numpy array \(.*\); give"),
        (torch.from_numpy(PHOTO).to_sparse(), r"can't be made a numpy array"),
        ([[1, 2], [3]], r"can't be made a numpy array"),
        ([PHOTO], r"a photo can't be a list; give"),
        ({"image": PHOTO}, r"a photo can't be a dict; give"),
    ],
)
def test_other_arrays_are_refused(photo: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        read_image(photo)
    assert "\n" not in str(caught.value)


# --- open files


def png(photo: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(photo).save(stream, "PNG")
    return stream.getvalue()


class OneWay(io.RawIOBase):
    """Be a stream that can't go back, as a socket."""

    def __init__(self, content: bytes) -> None:
        self._rest = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._rest.readinto(buffer)


def test_open_files_are_read_from_their_begin_and_put_back(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(png(PHOTO))
    buffer = io.BytesIO()
    Image.fromarray(PHOTO).save(buffer, "PNG")  # leaves it at its end
    with path.open("rb") as file, path.open("rb", buffering=0) as raw:
        file.read(3)
        for stream, place in ((file, 3), (raw, 0), (buffer, buffer.tell())):
            for _ in range(2):
                assert np.array_equal(read_image(stream), PHOTO)
                assert stream.tell() == place and not stream.closed


def test_stream_that_can_not_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    assert np.array_equal(read_image(OneWay(png(PHOTO))), PHOTO)  # type: ignore[arg-type]
    monkeypatch.setattr("vkrt.media.image.MAX_PHOTO_BYTES", 2**20)
    with pytest.raises(ImageError, match="more than 1 MiB; save it to a file"):
        read_image(OneWay(bytes(2**20 + 1)))  # type: ignore[arg-type]


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(png(PHOTO)[:60])
    with path.open("rb") as file, pytest.raises(ImageError, match=r"photo\.png is truncated"):
        read_image(file)
    with pytest.raises(ImageError, match=r"photo\.png can't be read \(.*closed.*\); open it"):
        read_image(file)
    for text in (io.StringIO("x"), path.open(encoding="latin-1")):
        with text, pytest.raises(ImageError, match='is open as text; open it with "rb"'):
            read_image(text)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match=r"the picture is empty \(0 bytes\)"):
        read_image(io.BytesIO())


# --- several


def test_batches_are_told_from_photos() -> None:
    for several in ([PHOTO, PHOTO], (PHOTO, png(PHOTO)), np.stack([PHOTO] * 2)):
        photos, is_list = split_batch(several)
        assert is_list and len(photos) == 2
        assert all(np.array_equal(photo, PHOTO) for photo in read_photos(photos))
    clip = np.stack([PHOTO, PHOTO // 255])  # the second one is all within 0..1
    for batch in (torch.from_numpy(clip).permute(0, 3, 1, 2).float(), clip.tolist()):
        photos, is_list = split_batch(batch)
        assert is_list and np.array_equal(np.stack(list(read_photos(photos))), clip)
    for one in (PHOTO, PHOTO.tolist(), PHOTO[:, :, 0].tolist(), io.BytesIO(png(PHOTO)), b"x", "x"):
        photos, is_list = split_batch(one)
        assert not is_list and len(photos) == 1
    assert split_batch([]) == ([], True) and list(read_photos([])) == []
    with pytest.raises(ImageError, match=r"not \(2, 5, 7, 9\) uint8; transpose"):
        split_batch(np.zeros((2, 5, 7, 9), np.uint8))


def test_the_wrong_one_of_several_is_named() -> None:
    for wrong, message in (
        (png(PHOTO)[:60], r"^photo 2 of 3: the picture is truncated"),
        (np.zeros((2, 5, 7, 9)), r"^photo 2 of 3: the photo must be"),
        (None, r"^photo 2 of 3: a photo can't be a NoneType"),
        ("no such file", r"^photo 2 of 3: no such file does not exist"),
    ):
        with pytest.raises(ImageError, match=message):
            read_photos([PHOTO, wrong, PHOTO])
    floats = np.stack([PHOTO / 255] * 3)
    floats[1, 0, 0] = np.nan
    with pytest.raises(ImageError, match=r"^photo 2 of 3: .*not finite"):
        read_photos(split_batch(floats)[0])
    with pytest.raises(ImageError, match=r"^a photo can't be"):
        read_photos([None])


def test_few_decoded_photos_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vkrt.media.photo_lists.HELD_BYTES", 2 * PHOTO.nbytes)
    sources = [png(PHOTO), Image.fromarray(PHOTO), png(GREY), io.BytesIO(png(GREY)), PHOTO, GREY]
    given = list(read_photos(sources))
    assert len(given) == 6
    for got, wanted in zip(given, (PHOTO, PHOTO, GREY, GREY, PHOTO, GREY), strict=True):
        assert np.array_equal(got, wanted)


def test_no_photo_of_a_list_is_encoded_if_one_is_broken(
    pico: str, pico_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = vkrt.load(pico, checkpoint=pico_checkpoint)
    encoded = []
    encode = segmenter._encode_batch

    def noted(photos: Any) -> Any:
        encoded.extend(photos)
        return encode(photos)

    monkeypatch.setattr(segmenter, "_encode_batch", noted)
    with pytest.raises(ImageError, match=r"^photo 3 of 3: "):
        segmenter.encode([PHOTO, GREY, b"broken"])
    assert not encoded
    first, second = segmenter.encode(np.stack([PHOTO, GREY]))
    assert first.size == second.size == (5, 7) and len(encoded) == 2
    assert isinstance(segmenter.encode(PHOTO[None]), list)
    for form in (torch.from_numpy(PHOTO).permute(2, 0, 1), PHOTO.tolist(), PHOTO / 255):
        assert segmenter.encode(form) is first


# --- clips in one array


def test_clip_forms_agree() -> None:
    clip = np.stack([PHOTO // 255, PHOTO, 255 - PHOTO])
    tensor = torch.from_numpy(clip)
    for form in (
        clip,
        np.concatenate([clip, clip[..., :1]], axis=3),
        clip.transpose(0, 3, 1, 2),
        clip.astype(np.float32),
        clip / 255,
        clip.astype(np.uint16) * 256,
        tensor,
        tensor.permute(0, 3, 1, 2),
        (tensor / 255).requires_grad_(),
        tensor.double(),
    ):
        got = [read_image(frame) for frame in ArrayFrames(form, "the array", ImageError)]
        assert np.array_equal(np.stack(got), clip)


def test_volumes_are_grey_frames() -> None:
    volume = np.stack([PHOTO[:, :, 0] // 255, PHOTO[:, :, 0], PHOTO[:, :, 1]])
    wanted = np.repeat(volume[..., None], 3, axis=3)
    for form in (volume, volume[..., None], volume[:, None], volume / 255, volume.astype(float)):
        got = [read_image(frame) for frame in ArrayFrames(form, "the array", ImageError)]
        assert np.array_equal(np.stack(got), wanted)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 2, 9), (1, 2, 5, 7, 3), ()])
def test_arrays_that_are_no_clip(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=r"must be \(T, H, W, 3\) uint8 RGB, or .* not \("):
        ArrayFrames(np.zeros(shape, np.uint8), "the array", ImageError)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_one_photo_is_no_clip(channels: int) -> None:
    with pytest.raises(ImageError, match=r"is one photo by its shape .*; give array\[None\]"):
        ArrayFrames(np.zeros((5, 7, channels), np.uint8), "the array", ImageError)


def test_one_scale_for_all_frames() -> None:
    scale = FloatScale()
    black, dim = np.zeros((2, 2)), np.full((2, 2), 0.5)
    assert scale.bytes_of(black, "it").max() == 0 and scale.top is None
    assert scale.bytes_of(dim, "it").max() == 128 and scale.top == 1
    with pytest.raises(ImageError, match=r"from 50 to 50, but the frames before it have 0\.\.1;"):
        scale.bytes_of(dim * 100, "it")
    scale = FloatScale()
    assert scale.bytes_of(dim * 100, "it").max() == 50
    assert scale.bytes_of(np.ones((2, 2)), "it").max() == 1
