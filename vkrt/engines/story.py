"""The story of one object of a clip: what was said of it, and what tracking left on frames."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vkrt.engines.prompt import Prompt
from vkrt.errors import PromptError
from vkrt.media.host_arrays import numbers
from vkrt.memory.history import History, Past

__all__ = ["Story", "is_conditioning", "joined"]


@dataclass
class Story:
    """Hold what is known of one object of a clip.

    Attributes:
        past: what tracking left on frames.
        said: its prompts by frame.
        tracked, reversed: sets of frames as the bits of a number: those that tracking went over,
            and those of them that it went over backwards.
    """

    past: History
    said: dict[int, Prompt] = field(default_factory=dict)
    tracked: int = 0
    reversed: int = 0

    def duplicate(self) -> Story:
        """Return a story that goes on by itself."""
        return replace(self, past=deepcopy(self.past), said=dict(self.said))

    def pass_over(self, frame: int, reverse: bool) -> None:
        """Note that tracking went over a frame, prompted or not, and in which direction."""
        bit = 1 << frame
        self.tracked |= bit
        self.reversed = self.reversed | bit if reverse else self.reversed & ~bit


def is_conditioning(past: Past | None) -> bool:
    """Tell whether later frames are conditioned on what a frame left."""
    return past is not None and past.conditioning


def joined(first: Prompt, second: Prompt) -> Prompt:
    """Return what two prompts on one frame say together.

    Raises:
        PromptError: one is a mask, or the second has a box.
    """
    if first.mask is not None or second.mask is not None or second.box is not None:
        raise PromptError(
            f"object {second.obj}: only points can be added to an earlier prompt; "
            "give masks and boxes with keep=False"
        )
    return replace(
        first,
        points=[*as_list(first.points), *as_list(second.points)],
        labels=[*labels_of(first), *labels_of(second)],
    )


def as_list(points: Any) -> list[Any]:
    """Return points as a list; none as an empty one."""
    if points is None:
        return []
    numbered: list[Any] = np.atleast_1d(numbers(points, "point")).tolist()
    return numbered


def labels_of(prompt: Prompt) -> list[Any]:
    """Return the label of each point of a prompt."""
    return [1] * len(as_list(prompt.points)) if prompt.labels is None else as_list(prompt.labels)
