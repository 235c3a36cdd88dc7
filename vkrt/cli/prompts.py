"""Prompts as they are typed: X,Y and X0,Y0,X1,Y1 in pixels, and a mask as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vkrt.errors import PromptError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Prompts", "mask_logits", "parse_prompts"]


@dataclass(frozen=True)
class Prompts:
    """Hold what names one object of a photo, or each of several.

    Attributes:
        points: x, y of each point, in pixels of the photo; None if there is none. Of several
            objects a list for each, as labels, of the same lengths.
        labels: 1 for a point on the object, 0 for one that is not.
        box: x0, y0, x1, y1 in pixels of the photo; of several objects a list of them.
        masks: a picture of each object; none if there is none.
        count: of the objects.
    """

    points: list[Any] | None
    labels: list[Any] | None
    box: list[Any] | None
    masks: tuple[Path, ...] = ()
    count: int = 1

    @property
    def ambiguous(self) -> bool:
        """Return whether this is a single click, which may mean a part or a whole."""
        return self.box is None and not self.masks and self.labels == [1]

    def check(self, size: tuple[int, int]) -> None:
        """Refuse what does not fit a photo of `size` (height, width), before any model runs.

        Raises:
            PromptError: a point or a box is outside.
        """
        from vkrt.media.prompts import prepare

        if self.points is not None or self.box is not None:
            prepare(size, 32, self.points, self.labels, self.box)

    def earlier(self, size: tuple[int, int], side: int) -> np.ndarray | None:
        """Return the masks as the logits (N, side, side) float32 that a model takes, or None.

        Raises:
            ImageError: a file is not a picture.
            PromptError: one has another size than the photo.
        """
        import numpy as np

        logits = [mask_logits(path, size, side) for path in self.masks]
        return np.concatenate(logits) if logits else None


def parse_prompts(
    points: Sequence[str],
    negatives: Sequence[str],
    boxes: Sequence[str] = (),
    masks: Sequence[Path] = (),
) -> Prompts:
    """Return the prompts of --point, --negative, --box and --mask.

    Several boxes or masks are of several objects, each of which may then have a point and a point
    not on it: the first one of each option is of the first object.

    Raises:
        PromptError: there is none, one is not made of finite numbers, or it is not clear which
            object they are of.
    """
    on, off = (
        [numbers(option, text, "X,Y", "500,375") for text in texts]
        for option, texts in (("--point", points), ("--negative", negatives))
    )
    corners = [numbers("--box", text, "X0,Y0,X1,Y1", "40,30,300,280") for text in boxes]
    if not (on or off or corners or masks):
        raise PromptError("name the object: give --point X,Y, --box X0,Y0,X1,Y1 or --mask FILE")
    count = max(len(corners), len(masks), 1)
    if count > 1:
        check_counts(count, {"--point": on, "--negative": off, "--box": corners, "--mask": masks})
        placed = [[*pair] for pair in zip(*filter(None, (on, off)), strict=True)]
        kinds = [[*[1] * bool(on), *[0] * bool(off)]] * count if placed else None
        return Prompts(placed or None, kinds, corners or None, tuple(masks), count)
    return Prompts(
        points=[*on, *off] or None,
        labels=[1] * len(on) + [0] * len(off) or None,
        box=corners[0] if corners else None,
        masks=tuple(masks),
    )


def check_counts(count: int, given: Mapping[str, Sequence[object]]) -> None:
    """Refuse options of which it is not clear what object they are of.

    Raises:
        PromptError: one is not given once for each object, nor left out.
    """
    for option, values in given.items():
        if values and len(values) != count:
            raise PromptError(
                f"several --box or --mask name several objects, here {count}: give {option} "
                f"{count} times too, in the same order, or not at all; it is there {len(values)} "
                "time(s)"
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
