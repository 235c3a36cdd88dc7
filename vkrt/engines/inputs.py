"""Pictures and masks that a generation starts from, read and checked before anything runs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vkrt.engines.request import check_size, smallest_side
from vkrt.errors import GenerationError
from vkrt.media.image import Photo, read_image
from vkrt.media.picture import read_mask, read_rgb, to_latent_mask
from vkrt.models.sd35.config import Sd35Config

__all__ = ["Inputs", "read_inputs"]

SIDE = 1024


@dataclass(frozen=True)
class Inputs:
    """Hold what was given besides words and numbers.

    Attributes:
        size: width and height of the pictures to make, in pixels.
        pixels: (3, H, W) float32 in [-1, 1], the picture to change.
        mask: (h, w) float32 for each latent pixel, 1 where that picture changes.
        control: (3, H, W) float32 in [-1, 1], the condition of a ControlNet.
        noise: (N, C, h, w) float32 to start from in place of that of the seeds.
    """

    size: tuple[int, int]
    pixels: np.ndarray | None = field(default=None, repr=False)
    mask: np.ndarray | None = field(default=None, repr=False)
    control: np.ndarray | None = field(default=None, repr=False)
    noise: np.ndarray | None = field(default=None, repr=False)


def read_inputs(
    config: Sd35Config,
    width: int | None = None,
    height: int | None = None,
    image: Photo | None = None,
    mask: Photo | None = None,
    control: Photo | None = None,
) -> Inputs:
    """Return the inputs, at the size of the pictures to make.

    Args:
        config: of the model.
        width, height: in pixels; None is that of `image`, rounded down to what the model can
            make, or 1024 without one.
        image, mask, control: as in Generator.generate.

    Raises:
        GenerationError: the size is not possible, or there is a mask without a picture.
        ImageError: a picture can't be read, or the mask is not of the picture's size.
    """
    if mask is not None and image is None:
        raise GenerationError("a mask says where a picture changes: give image= too")
    photo = None if image is None else read_image(image)
    own = SIDE, SIDE
    if photo is not None:
        unit = smallest_side(config)
        high, wide = (max(side - side % unit, unit) for side in photo.shape[:2])
        own = wide, high
    wide, high = (
        side if wanted is None else wanted
        for wanted, side in zip((width, height), own, strict=True)
    )
    # Before the picture is resized, which has no bounds of its own.
    wide, high = check_size(config, wide, high)
    latent_mask = None
    if photo is not None and mask is not None:
        latent_mask = latent_mask_of(mask, photo.shape[:2], (high, wide), config.vae.stride)
    return Inputs(
        (wide, high),
        None if photo is None else read_rgb(photo, (high, wide)),
        latent_mask,
        None if control is None else read_rgb(control, (high, wide)),
    )


def latent_mask_of(
    mask: Photo, photo_size: tuple[int, int], size: tuple[int, int], stride: int
) -> np.ndarray:
    """Return (h, w) float32 of a mask: 1 for the latent pixels that change.

    Args:
        mask: as in read_mask.
        photo_size, size: heights and widths of the picture as given and as it is made, in pixels.
        stride: pixels along a latent pixel.

    Raises:
        GenerationError: there are none.
        ImageError: the mask can't be read, or is not of the picture's size.
    """
    latent = to_latent_mask(read_mask(mask, photo_size, size), stride)
    if not latent.any():
        raise GenerationError("the mask is black all over, so that nothing would change")
    return latent
