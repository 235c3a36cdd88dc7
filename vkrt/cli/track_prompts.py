"""Prompts on frames as they are typed: X,Y@FRAME:OBJ in pixels, and masks as pictures."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vkrt.cli.prompts import numbers
from vkrt.errors import PromptError

if TYPE_CHECKING:
    from vkrt.engines.prompt import Prompt
    from vkrt.media.frames import Frames

__all__ = ["FramePrompt", "check_prompts", "parse_prompts"]

# What a prompt says, then @FRAME, then :OBJ; a file name may have both signs in it.
TEXT = re.compile(r"(.*?)(?:@([0-9]{1,9}))?(?::([0-9]{1,9}))?", re.DOTALL)
FIRST_FRAME = 0
FIRST_OBJECT = 1
# Any side of a model's input does to find out whether a prompt fits a frame.
SIDE = 32


# Compared by identity: a prompt may hold arrays.
@dataclass(frozen=True, eq=False)
class FramePrompt:
    """Hold what is said of one object on one frame.

    Attributes:
        frame: its number.
        prompt: points, a box or a mask, in pixels of the frame.
    """

    frame: int
    prompt: Prompt

    @property
    def refines(self) -> bool:
        """Tell whether this can correct what was tracked: points can, boxes and masks name anew."""
        return self.prompt.box is None and self.prompt.mask is None


@dataclass
class Parts:
    """Gather the options that speak of one object on one frame."""

    points: list[list[float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    boxes: list[list[float]] = field(default_factory=list)
    masks: list[Path] = field(default_factory=list)

    def join(self, frame: int, obj: int) -> FramePrompt:
        """Return the one prompt that they are.

        Raises:
            PromptError: there are several boxes or masks, or a mask beside something else.
            ImageError: a mask can't be read.
        """
        from vkrt.engines.prompt import Prompt
        from vkrt.media.masks import read_mask

        where = f"object {obj} on frame {frame}"
        if len(self.boxes) > 1:
            raise PromptError(f"{where} has {len(self.boxes)} boxes; give one --box of it there")
        if self.masks and len(self.masks) + len(self.points) + len(self.boxes) > 1:
            raise PromptError(f"{where} has a --mask and more; a mask stands alone")
        prompt = Prompt(
            obj,
            points=self.points or None,
            labels=self.labels or None,
            box=self.boxes[0] if self.boxes else None,
            mask=read_mask(self.masks[0]) if self.masks else None,
        )
        return FramePrompt(frame, prompt)


def parse_prompts(
    points: Sequence[str], negatives: Sequence[str], boxes: Sequence[str], masks: Sequence[str]
) -> list[FramePrompt]:
    """Return the prompts of --point, --negative, --box and --mask, by frame and then object.

    Raises:
        PromptError: there is none, one is not made of finite numbers, or several of one object on
            one frame exclude each other.
        ImageError: a mask can't be read.
    """
    gathered: defaultdict[tuple[int, int], Parts] = defaultdict(Parts)
    for option, label, texts in (("--point", 1, points), ("--negative", 0, negatives)):
        for text in texts:
            what, place = split(text)
            spot = numbers(option, what, "X,Y@FRAME:OBJ", "500,375@0:1")
            gathered[place].points.append(spot)
            gathered[place].labels.append(label)
    for text in boxes:
        what, place = split(text)
        corners = numbers("--box", what, "X0,Y0,X1,Y1@FRAME:OBJ", "40,30,300,280@0:1")
        gathered[place].boxes.append(corners)
    for text in masks:
        what, place = split(text)
        gathered[place].masks.append(Path(what))
    if not gathered:
        raise PromptError(
            "name an object: give --point X,Y@FRAME, --box X0,Y0,X1,Y1@FRAME or --mask FILE@FRAME"
        )
    return [parts.join(*place) for place, parts in sorted(gathered.items())]


def split(text: str) -> tuple[str, tuple[int, int]]:
    """Return what a prompt says, and the frame and the object of which it says that."""
    found = TEXT.fullmatch(text)
    assert found is not None  # the pattern takes any text
    what, frame, obj = found.groups()
    return what, (int(frame or FIRST_FRAME), int(FIRST_OBJECT if obj is None else obj))


def check_prompts(prompts: Sequence[FramePrompt], clip: Frames, live: bool) -> None:
    """Refuse what does not fit the frames, before any model runs.

    Args:
        live: the frames are still to come, so that none is beyond the end.

    Raises:
        PromptError: a frame is beyond the clip, or a prompt does not fit the frames.
        VideoError: a frame with a prompt can't be read.
    """
    from vkrt.engines.prompt import read_prompt

    size = clip.size
    if size is None:  # nothing was read of a camera yet
        first = clip.frame(0)
        size = first.shape[0], first.shape[1]
    for said in prompts:
        try:
            read_prompt(said.prompt, size, SIDE)
        except PromptError as error:
            where = f"object {said.prompt.obj} on frame {said.frame}"
            raise PromptError(f"{where}: {error}") from None
    for said in prompts:
        if not live:
            check_frame(said.frame, clip)


def check_frame(frame: int, clip: Frames) -> None:
    """Refuse a frame beyond the clip.

    Raises:
        PromptError: naming the last one.
    """
    if not clip.has(frame):
        last = (clip.count or 1) - 1
        raise PromptError(f"frame {frame} is beyond {clip.name}; give one from 0 to {last}")
