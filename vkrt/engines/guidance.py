"""Guidance: which rows the model runs at a step, and the one velocity that they make together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vkrt.arguments import number
from vkrt.engines.schedule import check_profile
from vkrt.errors import GenerationError

__all__ = ["COND", "LARGEST_SCALE", "SKIP", "UNCOND", "Guidance", "guide", "split_rows"]

# Of guidance, and of what else is added to a velocity; useful ones are below 20.
LARGEST_SCALE = 1000

# The rows: without the prompt, with it, and with it but without some of the model's layers.
UNCOND = "uncond"
COND = "cond"
SKIP = "skip"


@dataclass(frozen=True)
class Guidance:
    """Say how a generation is guided.

    Attributes:
        scale: of classifier-free guidance; at most 1 there is none, and no unconditional row.
        skip_layers: blocks that skip-layer guidance leaves out.
        skip_scale: of skip-layer guidance; 0 is none.
        skip_from, skip_until: shares of the steps; it is on at the steps strictly between.
        profile: "diffusers" has skip-layer guidance only beside classifier-free guidance.

    Raises:
        GenerationError: a number is not finite, or a share is not between 0 and 1.
    """

    scale: float
    skip_layers: tuple[int, ...] = ()
    skip_scale: float = 0.0
    skip_from: float = 0.01
    skip_until: float = 0.2
    profile: str = "reference"

    def __post_init__(self) -> None:
        """Refuse what can't be computed with."""
        check_profile(self.profile)
        check_scale("guidance", self.scale)
        check_scale("skip_scale", self.skip_scale)
        if not 0 <= self.skip_from <= self.skip_until <= 1:
            raise GenerationError(
                "skip_from and skip_until must be shares of the steps, 0 <= from <= until <= 1, "
                f"not {self.skip_from} and {self.skip_until}"
            )

    @property
    def on(self) -> bool:
        """Tell whether the unconditional row is needed."""
        return self.scale > 1

    @property
    def skips(self) -> bool:
        """Tell whether layers are skipped at any step."""
        allowed = self.on or self.profile == "reference"
        return allowed and self.skip_scale > 0 and bool(self.skip_layers)

    def rows(self, index: int, steps: int) -> tuple[str, ...]:
        """Return the rows of a step, in the order in which they run.

        Args:
            index: the step, counted from the first that is taken: 0, too, where a picture enters
                in the middle of the schedule.
            steps: of the whole schedule in the "reference" profile; those that are taken in the
                "diffusers" profile.
        """
        skipping = self.skips and steps * self.skip_from < index < steps * self.skip_until
        return (*((UNCOND,) if self.on else ()), COND, *((SKIP,) if skipping else ()))

    def combine(self, rows: tuple[str, ...], velocity: np.ndarray) -> np.ndarray:
        """Return (n, C, h, w), the guided velocity.

        Args:
            rows: of the step.
            velocity: (len(rows) * n, C, h, w) float32, the n images of each row together.
        """
        return guide(split_rows(rows, velocity), self.scale, self.skip_scale)


def guide(
    velocities: Mapping[str, np.ndarray], guidance: float, skip_scale: float = 0.0
) -> np.ndarray:
    """Return u + guidance * (c - u) + skip_scale * (c - s), of the rows that are there.

    Args:
        velocities: (n, C, h, w) float32 by row: "cond" c, and with guidance "uncond" u, with
            skip-layer guidance "skip" s.
        guidance: scale of classifier-free guidance (Ho and Salimans, 2207.12598, with w + 1).
        skip_scale: scale of skip-layer guidance.
    """
    cond = velocities[COND]
    guided = cond
    if UNCOND in velocities:
        uncond = velocities[UNCOND]
        guided = uncond + np.float32(guidance) * (cond - uncond)
    if SKIP in velocities:
        guided = guided + (cond - velocities[SKIP]) * np.float32(skip_scale)
    return guided


def split_rows(rows: tuple[str, ...], velocity: np.ndarray) -> dict[str, np.ndarray]:
    """Return views of (len(rows) * n, ...) by row, each (n, ...)."""
    return dict(zip(rows, np.split(velocity, len(rows)), strict=True))


def check_scale(name: str, scale: Any) -> None:
    """Refuse a scale that is no number from 0 on, or so large that nothing can come of it."""
    number(name, scale, 0, LARGEST_SCALE, kind=GenerationError)
