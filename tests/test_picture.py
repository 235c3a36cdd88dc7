"""What pictures are made from, and the files that they end in."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vkrt.errors import GenerationError, ImageError, OutputError
from vkrt.media.picture import (
    KEY,
    read_mask,
    read_parameters,
    read_rgb,
    save_png,
    to_latent_mask,
    to_picture,
    to_pixels,
)

PARAMETERS = {"prompt": "a lighthouse ünder 月\nat dusk", "seed": 7, "guidance": 4.5, "mask": None}


def disc(height: int = 90, width: int = 120) -> np.ndarray:
    """Return a mask (H, W) bool."""
    y, x = np.mgrid[:height, :width]
    return (x - width / 2) ** 2 + (y - height / 2) ** 2 < (height / 3) ** 2


@pytest.mark.parametrize("size", [(88, 120), (64, 48), (160, 208)])
def test_photo_is_read_as_diffusers_reads_it(photo: np.ndarray, size: tuple[int, int]) -> None:
    found = read_rgb(photo, size)
    wanted = VaeImageProcessor().preprocess(Image.fromarray(photo), *size)[0].numpy()
    assert found.dtype == np.float32 and found.flags.c_contiguous
    np.testing.assert_array_equal(found, wanted)
    assert found.min() >= -1 and found.max() <= 1


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::2] = 255
    assert np.abs(read_rgb(stripes, (8, 8))).max() < 0.1


def test_bad_photo_is_one_line() -> None:
    with pytest.raises(ImageError, match="does not exist"):
        read_rgb("nowhere.png", (8, 8))


def masks(tmp_path: Path) -> list:
    """Return the same mask in every form."""
    mask = disc()
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    path = tmp_path / "mask.png"
    grey.convert("1").save(path)
    return [
        mask,
        mask.astype(np.uint8),
        mask.astype(np.int64),
        mask.astype(np.uint8) * 255,
        mask.astype(np.float32),
        torch.from_numpy(mask),
        torch.from_numpy(mask).long(),
        torch.from_numpy(mask).float().requires_grad_(),
        mask.astype(int).tolist(),
        np.repeat(mask[:, :, None].astype(np.uint8) * 255, 3, 2),
        *(grey.convert(mode) for mode in ("1", "L", "P", "LA", "RGB", "RGBA", "F", "CMYK")),
        Image.fromarray(mask.astype(np.int32) * 65535),
        Image.fromarray(mask.astype(np.uint16) * 65535),
        path,
        path.read_bytes(),
    ]


def test_masks_of_any_form_say_the_same(tmp_path: Path) -> None:
    for mask in masks(tmp_path):
        found = read_mask(mask, (90, 120), (90, 120))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, disc())


def test_mask_follows_the_size_as_in_diffusers() -> None:
    picture = Image.fromarray(disc().astype(np.uint8) * 255)
    found = read_mask(picture, (90, 120), (48, 80))
    processor = VaeImageProcessor(
        do_normalize=False, do_binarize=True, do_convert_grayscale=True, vae_scale_factor=8
    )
    wanted = processor.preprocess(picture, 48, 80)
    np.testing.assert_array_equal(found, wanted[0, 0].numpy())
    latent = torch.nn.functional.interpolate(wanted, size=(6, 10))
    np.testing.assert_array_equal(to_latent_mask(found), latent[0, 0].numpy())


def test_blank_masks_are_what_they_are() -> None:
    for value in (0, 1, 255):
        mask = np.full((4, 6), value, np.uint8)
        assert np.unique(read_mask(mask, (4, 6), (8, 8))).tolist() == [float(value > 0)]


def test_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ImageError, match=r"mask is 120x90 but the image is 121x90; give a mask"):
        read_mask(disc(), (90, 121), (64, 64))


@pytest.mark.parametrize("wrong", [-0.5, 1.5, 255.0, float("nan")])
def test_mask_out_of_range_is_refused(wrong: float) -> None:
    mask = disc().astype(np.float32)
    mask[0, 0] = wrong
    with pytest.raises(ImageError, match=r"the mask has values from .*; scale them to 0\.\.1"):
        read_mask(mask, (90, 120), (64, 64))


def test_pixels_are_rounded_as_in_diffusers() -> None:
    decoded = np.random.default_rng(0).uniform(-1.3, 1.3, (3, 40, 30)).astype(np.float32)
    levels = (np.arange(256, dtype=np.float32) + 0.5) / 255 * 2 - 1
    decoded[0].flat[:256] = levels
    wanted = VaeImageProcessor().postprocess(torch.from_numpy(decoded)[None])[0]
    np.testing.assert_array_equal(to_pixels(decoded), np.asarray(wanted))
    assert to_picture(decoded).size == (30, 40)


def test_every_pixel_survives_both_ways(photo: np.ndarray) -> None:
    np.testing.assert_array_equal(to_pixels(read_rgb(photo, photo.shape[:2])), photo)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_a_number_is_refused(wrong: float) -> None:
    decoded = np.zeros((3, 4, 4), np.float32)
    decoded[1, 2, 3] = wrong
    with pytest.raises(GenerationError, match='take precision="fp32"'):
        to_pixels(decoded)


def test_parameters_come_back_with_the_pixels(photo: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    save_png(Image.fromarray(photo), path, PARAMETERS)
    assert read_parameters(path) == PARAMETERS
    with Image.open(path) as picture:
        assert picture.format == "PNG" and KEY in picture.info
        np.testing.assert_array_equal(np.asarray(picture), photo)


def test_parameters_may_be_numpy_numbers_paths_and_odd_text(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    odd = os.fsdecode(b"caf\xe9")
    given = {"seed": np.int64(3), "size": np.array([4, 6]), "lora": Path("a/b"), "prompt": odd}
    save_png(Image.new("RGB", (2, 2)), path, given)
    found = read_parameters(path)
    assert found == {"seed": 3, "size": [4, 6], "lora": str(Path("a/b")), "prompt": odd}


def test_a_long_prompt_is_kept(tmp_path: Path) -> None:
    path, prompt = tmp_path / "out.png", "lighthouse " * 100_000
    save_png(Image.new("RGB", (2, 2)), path, {"prompt": prompt})
    assert read_parameters(path) == {"prompt": prompt}


@pytest.mark.parametrize("wrong", [{"x": object()}, {"x": float("nan")}])
def test_nothing_is_left_when_saving_fails(wrong: dict, tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"old")
    with pytest.raises((TypeError, ValueError)):
        save_png(Image.new("RGB", (2, 2)), path, wrong)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["out.png"]


def test_an_interrupted_save_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"old")

    def stop(image: Image.Image, stream: object, *_: object, **__: object) -> None:
        stream.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        save_png(Image.new("RGB", (2, 2)), path, {})
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["out.png"]


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        save_png(Image.new("RGB", (2, 2)), tmp_path / "no" / "out.png", {})


@pytest.mark.parametrize("text", [None, "steps: 20, sampler: euler", "[1, 2]", "[" * 9999, "7"])
def test_pictures_without_parameters_are_refused(text: str | None, tmp_path: Path) -> None:
    path, info = tmp_path / "other.png", PngInfo()
    if text is not None:
        info.add_text(KEY, text)
    Image.new("RGB", (2, 2)).save(path, pnginfo=info)
    with pytest.raises(ImageError, match="does not say how it was made"):
        read_parameters(path)


def test_parameters_of_what_is_no_picture_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("a text")
    with pytest.raises(ImageError, match="not a picture"):
        read_parameters(tmp_path / "text.png")
    with pytest.raises(ImageError, match="can't be read"):
        read_parameters(tmp_path / "absent.png")
