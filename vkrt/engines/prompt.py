"""What a user says of one object on one frame, and what the stages of tracking take of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vkrt.arguments import whole
from vkrt.errors import PromptError
from vkrt.media.host_arrays import is_nothing
from vkrt.media.masks import mask_to_input
from vkrt.media.prompt_masks import read_whole_mask
from vkrt.media.prompts import PAD_LABEL, prepare

__all__ = ["UNPROMPTED", "Ask", "Prompt", "check_id", "read_prompt", "says_nothing", "tidy"]

# Ids fit into 64 bits, so that files can hold them.
MAX_ID = 2**63 - 1


@dataclass(frozen=True)
class Prompt:
    """Name an object on a frame by points, a box or a mask.

    Attributes:
        obj: any whole number of at most 64 bits; the same one always means the same object.
        points: (P, 2) x, y in pixels of the frame.
        labels: (P,) 1 on the object, 0 not on it, 2 and 3 the top left and bottom right corner of
            a box; None means all 1.
        box: (4,) x0, y0, x1, y1 in pixels of the frame.
        mask: (H, W) bool at the frame's own size, or grey of 0 to 1 or 255; it stands alone and is
            taken as it is.
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


def read_prompt(prompt: Prompt, size: tuple[int, int], image_size: int, strict: bool = True) -> Ask:
    """Check a prompt and bring it to the model's input.

    Args:
        prompt: what the user said.
        size: height and width of the frame.
        image_size: side of the model's input.
        strict: as in vkrt.media.prompts.prepare.

    Raises:
        PromptError: it says nothing, does not fit the frame, or has a mask beside something else.
    """
    said = tidy(prompt)
    obj = said.obj
    if says_nothing(prompt):
        raise PromptError(f"object {obj} has an empty prompt: give points, a box or a mask")
    if said.mask is not None:
        if any(part is not None for part in (said.points, said.labels, said.box)):
            raise PromptError(
                f"object {obj} has a mask and points or a box on one frame: give one of them"
            )
        mask = read_whole_mask(said.mask, size)
        return Ask(UNPROMPTED.points, UNPROMPTED.labels, mask_to_input(mask, image_size))
    batch = prepare(size, image_size, said.points, said.labels, said.box, strict=strict)
    if len(batch.points) != 1:
        raise PromptError(
            f"object {obj} has {len(batch.points)} prompts in one: give one Prompt an object"
        )
    return Ask(batch.points[0], batch.labels[0])


def check_id(obj: Any) -> int:
    """Return an object's id as int, or refuse what names no object."""
    return whole("an object's id", obj, -MAX_ID, MAX_ID, kind=PromptError)


def tidy(prompt: Prompt) -> Prompt:
    """Return a prompt with its id as int, and None for each empty list or array.

    Raises:
        PromptError: the id is none.
    """
    parts = {name: getattr(prompt, name) for name in ("points", "labels", "box", "mask")}
    kept = {name: None if is_nothing(part) else part for name, part in parts.items()}
    return Prompt(check_id(prompt.obj), **kept)


def says_nothing(prompt: Prompt) -> bool:
    """Tell whether a prompt is of empty lists and arrays alone, as a detector gives for nothing."""
    given = [part for part in (prompt.points, prompt.box, prompt.mask) if part is not None]
    return bool(given) and all(map(is_nothing, given))
