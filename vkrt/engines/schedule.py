"""The noise levels of a generation: sigmas, the model's timesteps, and where a picture enters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vkrt.errors import GenerationError

__all__ = [
    "DPMPP_2M",
    "EULER",
    "PROFILES",
    "SAMPLERS",
    "Schedule",
    "check_profile",
    "check_sampler",
    "first_step",
    "make_schedule",
    "sigmas",
]

EULER = "euler"
DPMPP_2M = "dpmpp_2m"
SAMPLERS = (EULER, DPMPP_2M)
# Whose conventions a generation follows where the published implementations differ.
PROFILES = ("reference", "diffusers")

# Of the training: t = 1, ..., 1000.
TRAIN_STEPS = 1000
# Beyond them the noise levels crowd at one end.
SMALLEST_SHIFT, LARGEST_SHIFT = 0.01, 100


@dataclass(frozen=True)
class Schedule:
    """Hold the noise levels that a sampler goes through.

    Attributes:
        sigmas: (steps + 1,) float32, falling, the last one 0; a latent at level sigma is
            sigma * noise + (1 - sigma) * picture.
        timesteps: (steps,) float32, what the model is told at each step, of 1000.
    """

    sigmas: np.ndarray
    timesteps: np.ndarray

    @property
    def steps(self) -> int:
        """Return the number of steps."""
        return len(self.timesteps)

    def after(self, start: int) -> Schedule:
        """Return what is left once the first `start` steps are skipped."""
        return Schedule(self.sigmas[start:], self.timesteps[start:])


def make_schedule(
    steps: int, shift: float = 3.0, profile: str = "reference", sampler: str = EULER
) -> Schedule:
    """Lay out the noise levels of a generation.

    sigma = shift * t / (1 + (shift - 1) * t), with t falling evenly from 1 to the lowest sigma of
    the training, which is so shifted twice, in the reference and in diffusers alike; then 0.
    The "diffusers" profile of "dpmpp_2m" has levels of its own (DPMSolverMultistepScheduler with
    use_flow_sigmas): t falls from 0.999 by equal steps that would end at 0, and the model is told
    whole timesteps, rounded down.

    Raises:
        GenerationError: the steps, the shift, the profile or the sampler is not possible.
    """
    check_steps(steps)
    check_shift(shift)
    check_profile(profile)
    check_sampler(sampler)
    if profile == "diffusers" and sampler == DPMPP_2M:
        even = np.linspace(1, 1 / TRAIN_STEPS, steps + 1)
        levels = shifted(1 - even[:0:-1], shift)
        # The timesteps come of the float64 levels: a level rounded first could round up to a whole.
        timesteps = np.floor(levels * TRAIN_STEPS).astype(np.float32)
        return Schedule(with_zero(levels), timesteps)
    highest, lowest = (as_float32(shifted(t, shift)) for t in (1.0, 1 / TRAIN_STEPS))
    kept = with_zero(shifted(np.linspace(highest, lowest, steps), shift))
    return Schedule(kept, kept[:-1] * np.float32(TRAIN_STEPS))


def sigmas(
    steps: int, shift: float = 3.0, profile: str = "reference", sampler: str = EULER
) -> np.ndarray:
    """Return (steps + 1,) float32, the noise levels of `make_schedule`.

    Raises:
        GenerationError: as `make_schedule`.
    """
    return make_schedule(steps, shift, profile, sampler).sigmas


def first_step(steps: int, strength: float, profile: str = "reference") -> int:
    """Return the step at which a picture enters: 0 at strength 1, where nothing of it is left.

    Both profiles skip the share 1 - strength of the steps, rounded down; they round differently
    (10 steps at strength 0.8 skip 1 in the reference and 2 in diffusers).

    Raises:
        GenerationError: the strength is not above 0 and at most 1, or the profile is unknown.
    """
    check_steps(steps)
    check_profile(profile)
    # Written so that NaN fails too.
    if not is_number(strength) or not 0 < strength <= 1:
        raise GenerationError(
            f"strength must be above 0 (keep the picture) and at most 1 (ignore it), "
            f"not {strength!r:.40}"
        )
    skipped = steps * (1 - strength) if profile == "reference" else steps - steps * strength
    return min(int(max(skipped, 0)), steps - 1)


def shifted(t: Any, shift: float) -> Any:
    """Return the noise level at time t of the training."""
    return shift * t / (1 + (shift - 1) * t)


def with_zero(levels: np.ndarray) -> np.ndarray:
    """Return the levels as float32 with a last one of 0."""
    return np.append(levels, 0).astype(np.float32)


def as_float32(value: float) -> float:
    """Return a number as float32 has it."""
    return float(np.float32(value))


def check_steps(steps: Any) -> None:
    """Refuse what is no number of steps."""
    whole = isinstance(steps, int | np.integer) and not isinstance(steps, bool)
    if not whole or not 1 <= steps <= TRAIN_STEPS:
        raise GenerationError(
            f"steps must be a whole number from 1 to {TRAIN_STEPS}, not {steps!r:.40}"
        )


def check_shift(shift: Any) -> None:
    """Refuse a shift under which the noise levels can't be told apart."""
    if not is_number(shift) or not SMALLEST_SHIFT <= shift <= LARGEST_SHIFT:
        raise GenerationError(
            f"shift must be from {SMALLEST_SHIFT} to {LARGEST_SHIFT} (the models were made for 3), "
            f"not {shift!r:.40}"
        )


def check_profile(profile: Any) -> None:
    """Refuse a profile that does not exist."""
    check_choice("profile", profile, PROFILES)


def check_sampler(sampler: Any) -> None:
    """Refuse a sampler that does not exist."""
    check_choice("sampler", sampler, SAMPLERS)


def check_choice(what: str, given: Any, choices: tuple[str, ...]) -> None:
    """Refuse what is none of the choices."""
    if given not in choices:
        names = " or ".join(f'"{choice}"' for choice in choices)
        raise GenerationError(f"{what} must be {names}, not {given!r:.40}")


def is_number(value: Any) -> bool:
    """Tell whether a value is a real number, truth values aside."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
