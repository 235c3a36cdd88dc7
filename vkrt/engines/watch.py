"""Who follows a generation from step to step, and may end it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vkrt.arguments import flag, function
from vkrt.errors import GenerationCancelled, GenerationError
from vkrt.media.preview import to_preview

__all__ = ["StepInfo", "Watch", "read_watch"]


@dataclass(frozen=True)
class StepInfo:
    """Tell what a step was.

    Attributes:
        step: how many are done, from 1.
        steps: how many there are.
        sigma: the noise level that the latents are at now; 0 behind the last step.
        preview: the first picture as the model foresees it, an eighth of its size; None where none
            was asked for.
    """

    step: int
    steps: int
    sigma: float
    preview: Image.Image | None = None


@dataclass(frozen=True)
class Watch:
    """Call back behind each step.

    Attributes:
        on_step: called with each step's StepInfo; False ends the generation.
        wants_preview: whether the steps come with one.
        cancelled: asked before the first step and behind each; True ends the generation.
    """

    on_step: Callable[[StepInfo], object] | None = None
    wants_preview: bool = False
    cancelled: Callable[[], bool] | None = None

    def check(self, done: int, steps: int) -> None:
        """End the generation if that is wanted.

        Raises:
            GenerationCancelled: it is.
        """
        if self.cancelled is not None and self.cancelled():
            raise stopped(done, steps)

    def after(self, done: int, steps: int, sigma: float, foreseen: np.ndarray) -> None:
        """Tell of a step.

        Args:
            done, steps: how many are, and how many there will be.
            sigma: the noise level that was reached.
            foreseen: (C, h, w) float32 latent of the first picture, without its noise.

        Raises:
            GenerationCancelled: it is to end here.
        """
        if self.on_step is not None:
            shown = to_preview(foreseen) if self.wants_preview else None
            if self.on_step(StepInfo(done, steps, sigma, shown)) is False:
                raise stopped(done, steps)
        # Behind the last one there is nothing left to save.
        if done < steps:
            self.check(done, steps)


def stopped(done: int, steps: int) -> GenerationCancelled:
    """Return the error of an end after so many steps."""
    return GenerationCancelled(f"stopped after {done} of {steps} steps; nothing was made")


def read_watch(on_step: Any, preview: Any, cancelled: Any) -> Watch:
    """Return who follows a generation.

    Raises:
        GenerationError: a callback can't be called, or preview is no truth value.
    """
    for name, value in (("on_step", on_step), ("cancelled", cancelled)):
        if value is not None:
            function(name, value, kind=GenerationError)
    return Watch(on_step, flag("preview", preview, kind=GenerationError), cancelled)
