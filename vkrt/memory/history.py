"""What tracking left on past frames, on the host: for corrections and for the way back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

__all__ = ["History", "Past"]


@dataclass(frozen=True)
class Past:
    """Hold what one object left on one frame.

    Attributes:
        logits: (h, w) float32 at low resolution.
        score: predicted IoU.
        object_score: logit: above 0, the object is visible.
        memory: (pixels, mem_dim) float32.
        pointer: (C,) float32.
        conditioning: whether later frames are conditioned on it.
    """

    logits: np.ndarray
    score: float
    object_score: float
    memory: np.ndarray
    pointer: np.ndarray
    conditioning: bool

    def __deepcopy__(self, memo: dict[int, Any]) -> Past:
        """Return the past itself: it does not change."""
        return self


class History:
    """Keep the past of one object: all conditioning frames, and so many others.

    Beyond that the frame is forgotten that is farthest in time both from the new one and from every
    conditioning frame: where a prompt was, tracking may start again, and the other way.

    The answer to a prompt is staged first: it is shown and refined, but other frames do not
    remember it until tracking goes on.

    Args:
        capacity: frames that are kept besides the conditioning ones.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._past: dict[int, Past] = {}
        self._staged: dict[int, Past] = {}

    def __len__(self) -> int:
        return len(self._past.keys() | self._staged.keys())

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._past.keys() | self._staged.keys()))

    def get(self, frame: int) -> Past | None:
        """Return the past of a frame, a staged one before another, or None."""
        return self._staged.get(frame) or self._past.get(frame)

    def settled(self, frame: int) -> Past | None:
        """Return the past of a frame as other frames remember it, or None."""
        return self._past.get(frame)

    def stage(self, frame: int, past: Past) -> None:
        """Keep the answer to a prompt until `settle`."""
        self._staged[frame] = past

    def settle(self) -> None:
        """Let other frames remember what is staged.

        A correction that is to condition nothing does not take the place of a conditioning frame,
        as in SAM 2's own predictor.
        """
        staged, self._staged = self._staged, {}
        for frame, past in staged.items():
            before = self._past.get(frame)
            if past.conditioning or before is None or not before.conditioning:
                self.put(frame, past)

    def put(self, frame: int, past: Past) -> None:
        """Keep the past of a frame, in place of an earlier one."""
        self._past[frame] = past
        others = [f for f, p in self._past.items() if not p.conditioning]
        if len(others) > self._capacity:
            places = [frame, *self.conditioning()]
            del self._past[max(others, key=lambda f: min(abs(f - place) for place in places))]

    def forget(self, frame: int) -> None:
        """Drop the past of a frame, if there is one."""
        self._staged.pop(frame, None)
        self._past.pop(frame, None)

    def demote(self, frame: int) -> None:
        """Drop what is staged on a frame; a settled past stays, but conditions nothing more."""
        self._staged.pop(frame, None)
        past = self._past.get(frame)
        if past is not None:
            self.put(frame, replace(past, conditioning=False))

    def conditioning(self) -> list[int]:
        """Return the settled conditioning frames in order."""
        return sorted(f for f, p in self._past.items() if p.conditioning)
