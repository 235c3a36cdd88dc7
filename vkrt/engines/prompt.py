"""What a user says of one object on one frame, and what the stages of tracking take of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vkrt.errors import PromptError
from vkrt.media.masks import mask_to_input
from vkrt.media.prompts import PAD_LABEL, prepare

__all__ = ["UNPROMPTED", "Ask", "Prompt", "read_prompt"]


@dataclass(frozen=True)
class Prompt:
    """Name an object on a frame by points, a box or a mask.

    Attributes:
        obj: any whole number; the same one always means the same object.
        points: (P, 2) x, y in pixels of the frame.
        labels: (P,) 1 on the object, 0 not on it; None means all 1.
        box: (4,) x0, y0, x1, y1 in pixels of the frame.
        mask: (H, W) bool at the frame's own size; it stands alone and is taken as it is.
    """

    obj: int
    points: Any = None
    labels: Any = None
    box: Any = None
    mask: Any = None


@dataclass(frozen=True)
class Ask:
    """Hold what the stages take for one object on one frame.

    Attributes:
        points: (P, 2) float32 x, y in pixels of the model's input, the pads behind them.
        labels: (P,) int32.
        mask: (S, S) float32 of 0 and 1, or None; then points count for nothing.
        earlier: (h, w) float32 logits that the points refine, or None.
        remember: whether the object's memories take part.
        conditioning: whether later frames are conditioned on the answer.
    """

    points: np.ndarray
    labels: np.ndarray
    mask: np.ndarray | None = None
    earlier: np.ndarray | None = None
    remember: bool = True
    conditioning: bool = False

    @property
    def prompted(self) -> bool:
        """Tell whether the user said anything."""
        return self.mask is not None or bool((self.labels != PAD_LABEL).any())

    @property
    def ambiguous(self) -> bool:
        """Tell whether the best of three masks is to be taken: for at most one point."""
        return len(self.labels) <= 2


# A frame on which nothing is said has two pads, as in training.
UNPROMPTED = Ask(np.zeros((2, 2), np.float32), np.full(2, PAD_LABEL, np.int32))


def read_prompt(prompt: Prompt, size: tuple[int, int], image_size: int) -> Ask:
    """Check a prompt and bring it to the model's input.

    Args:
        prompt: what the user said.
        size: height and width of the frame.
        image_size: side of the model's input.

    Raises:
        PromptError: it says nothing, does not fit the frame, or has a mask beside something else.
    """
    check_id(prompt.obj)
    if prompt.mask is not None:
        if any(part is not None for part in (prompt.points, prompt.labels, prompt.box)):
            raise PromptError(
                f"object {prompt.obj} has a mask and points or a box on one frame: give one of them"
            )
        mask = read_mask_prompt(prompt.mask, size)
        return Ask(UNPROMPTED.points, UNPROMPTED.labels, mask_to_input(mask, image_size))
    batch = prepare(size, image_size, prompt.points, prompt.labels, prompt.box)
    if len(batch.points) != 1:
        raise PromptError(
            f"object {prompt.obj} has {len(batch.points)} prompts in one: give one Prompt an object"
        )
    return Ask(batch.points[0], batch.labels[0])


def check_id(obj: Any) -> None:
    """Refuse what names no object."""
    if isinstance(obj, bool) or not isinstance(obj, int | np.integer):
        raise PromptError(f"an object's id must be a whole number, not {obj!r:.40}")


def read_mask_prompt(mask: Any, size: tuple[int, int]) -> np.ndarray:
    """Return (H, W) bool of a mask prompt.

    Raises:
        PromptError: it is not of the frame's size, or of anything but truth values and numbers.
    """
    array = np.asarray(mask)
    if array.shape != size or array.dtype.kind not in "buif":
        raise PromptError(
            f"a mask prompt must be (H, W) = {size} bool, as large as the frame, "
            f"not {array.shape} {array.dtype}"
        )
    return array > 0
