"""The story of one object of a clip: what was said of it, and what tracking left on frames."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vkrt.engines.prompt import Prompt
from vkrt.errors import PromptError
from vkrt.media.host_arrays import numbers
from vkrt.memory.history import History, Past

__all__ = ["Story", "is_conditioning", "joined", "nearest"]


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


def is_conditioning(past: Past | None) -> bool:
    """Tell whether later frames are conditioned on what a frame left."""
    return past is not None and past.conditioning


def nearest(frames: Sequence[int], frame: int, count: int) -> list[int]:
    """Return the `count` frames that matter most at a frame, as SAM 2 selects them.

    These are the last before it, the first from it on, and then the closest.
    """
    before, after = [f for f in frames if f < frame], [f for f in frames if f >= frame]
    chosen = [*before[-1:], *after[:1]][:count]
    others = sorted((f for f in frames if f not in chosen), key=lambda other: abs(other - frame))
    return [*chosen, *others[: count - len(chosen)]]


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
