"""Label maps: the masks of many objects as one palette picture, as DAVIS has them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vkrt.errors import ImageError, VideoError
from vkrt.media.files import write_atomically
from vkrt.media.image import DAMAGE, check_size, open_header
from vkrt.media.planes import as_masks

__all__ = ["label_map", "palette", "read_labels", "write_labels"]

MOST = 255
BACKGROUND = 0


def palette() -> np.ndarray:
    """Return the colours of labels, (256, 3) uint8, as PASCAL VOC and DAVIS have them.

    Of a label's bits, each third one makes one channel, lowest first, from the channel's top bit
    down: 0 is black, 1 dark red, 2 dark green.
    """
    labels = np.arange(MOST + 1)
    colours = np.zeros((MOST + 1, 3), np.uint8)
    for bit in range(8):
        channel, level = bit % 3, 7 - bit // 3
        colours[:, channel] |= ((labels >> bit & 1) << level).astype(np.uint8)
    return colours


def label_map(masks: np.ndarray, ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the label of each pixel, (H, W) uint8: the object's id, 0 where there is none.

    Where objects overlap the lowest id is seen.

    Args:
        masks: (N, H, W) bool.
        ids: (N,) from 1 to 255, each once.

    Raises:
        ImageError: the masks are no such array.
        VideoError: the ids do not fit them, or a picture can't hold them.
    """
    planes = as_masks(masks)
    numbers = [int(each) for each in ids]
    if len(numbers) != len(planes) or len(set(numbers)) != len(numbers):
        raise VideoError(
            f"{len(planes)} masks need as many different ids, not {numbers!s:.60}; give each "
            "its own"
        )
    if any(not 1 <= each <= MOST for each in numbers):
        raise VideoError(
            f"a label map holds ids from 1 to {MOST}, not {numbers!s:.60}; number the objects anew "
            "or write tracks.json"
        )
    labels = np.full(planes.shape[1:], BACKGROUND, np.uint8)
    for each in sorted(range(len(numbers)), key=lambda index: -numbers[index]):
        labels[planes[each]] = numbers[each]
    return labels


def write_labels(path: str | os.PathLike[str], labels: np.ndarray) -> None:
    """Write a label map (H, W) uint8 as a PNG with DAVIS's palette; whole or not at all.

    Raises:
        OutputError: the folder is missing, or the path may not be written.
    """
    picture = Image.fromarray(labels)
    picture.putpalette(palette().tobytes())
    write_atomically(path, lambda stream: picture.save(stream, "PNG"))


def read_labels(path: str | os.PathLike[str]) -> np.ndarray:
    """Return the label map (H, W) uint8 of a PNG with a palette, or of a grey one.

    Raises:
        ImageError: it is not there, no such picture, or damaged.
    """
    try:
        with (
            Path(path).open("rb") as stream,
            open_header(stream, str(path)) as picture,
        ):
            check_size(picture.height, picture.width, str(path))
            if picture.format == "PNG" and picture.mode in ("P", "L"):
                return np.array(picture, np.uint8)
            mode = picture.mode
    except DAMAGE as error:
        raise ImageError(f"{path} can't be read as a label map ({error}); give a PNG") from None
    raise ImageError(f"{path} has no labels but {mode} pixels; give a PNG with a palette")
