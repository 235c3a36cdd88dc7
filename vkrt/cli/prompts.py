"""Prompts as they are typed: X,Y and X0,Y0,X1,Y1 in pixels, and a mask as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vkrt.errors import PromptError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Prompts", "mask_logits", "parse_prompts"]


@dataclass(frozen=True)
class Prompts:
    """Hold the points and the box of one object.

    Attributes:
        points: x, y of each point, in pixels of the photo; None if there is none.
        labels: 1 for a point on the object, 0 for one that is not.
        box: x0, y0, x1, y1 in pixels of the photo.
    """

    points: list[list[float]] | None
    labels: list[int] | None
    box: list[float] | None

    @property
    def ambiguous(self) -> bool:
        """Return whether this is a single click, which may mean a part or a whole."""
        return self.box is None and self.labels == [1]

    def check(self, size: tuple[int, int]) -> None:
        """Refuse what does not fit a photo of `size` (height, width), before any model runs.

        Raises:
            PromptError: a point or the box is outside.
        """
        from vkrt.media.prompts import prepare

        if self.points is not None or self.box is not None:
            prepare(size, 32, self.points, self.labels, self.box)


def parse_prompts(points: Sequence[str], negatives: Sequence[str], box: str | None) -> Prompts:
    """Return the prompts of --point, --negative and --box.

    Raises:
        PromptError: one is not made of finite numbers.
    """
    given = [*(("--point", p) for p in points), *(("--negative", p) for p in negatives)]
    placed = [numbers(option, text, "X,Y", "500,375") for option, text in given]
    return Prompts(
        points=placed or None,
        labels=[1] * len(points) + [0] * len(negatives) if placed else None,
        box=None if box is None else numbers("--box", box, "X0,Y0,X1,Y1", "40,30,300,280"),
    )


def numbers(option: str, text: str, form: str, example: str) -> list[float]:
    """Return the finite numbers of a text such as "500,375".

    Raises:
        PromptError: it has another count or anything else in it.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != form.count(",") + 1 or not all(map(math.isfinite, values)):
        raise PromptError(
            f"{option} wants finite numbers {form} in pixels, such as {option} {example}, "
            f"not {text!r:.60}"
        )
    return values


def mask_logits(path: Path, size: tuple[int, int], side: int) -> np.ndarray:
    """Read a mask, white on the object, as the logits (1, side, side) float32 that a model takes.

    Args:
        path: a picture of the photo's own size.
        size: height and width of the photo.
        side: side of the model's low-resolution masks.

    Raises:
        ImageError: the file is not a picture.
        PromptError: it has another size than the photo.
    """
    from vkrt.media.masks import mask_to_logits, read_mask

    mask = read_mask(path)
    if mask.shape != size:
        raise PromptError(
            f"--mask {path} is {mask.shape[1]}x{mask.shape[0]} but the photo is "
            f"{size[1]}x{size[0]}; give a mask of the photo's own size"
        )
    return mask_to_logits(mask, side)
