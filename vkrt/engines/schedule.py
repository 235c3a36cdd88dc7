"""The noise levels of a generation: sigmas, the model's timesteps, and where a picture enters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vkrt.arguments import choice, number, shown, whole
from vkrt.errors import GenerationError

__all__ = [
    "DPMPP_2M",
    "EULER",
    "PROFILES",
    "SAMPLERS",
    "Schedule",
    "check_profile",
    "check_sampler",
    "check_shift",
    "check_steps",
    "check_strength",
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
    steps, shift = check_steps(steps), check_shift(shift)
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
    steps = check_steps(steps)
    check_profile(profile)
    strength = check_strength(strength)
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


def check_steps(steps: Any) -> int:
    """Return a number of steps as int, or refuse what is none."""
    return whole("steps", steps, 1, TRAIN_STEPS, kind=GenerationError)


def check_shift(shift: Any) -> float:
    """Return a shift under which the noise levels can be told apart, as float; the usual is 3."""
    return number("shift", shift, SMALLEST_SHIFT, LARGEST_SHIFT, kind=GenerationError)


def check_strength(strength: Any) -> float:
    """Return the share of a picture that changes, as float."""
    share = number("strength", strength, kind=GenerationError)
    if not 0 < share <= 1:
        raise GenerationError(
            f"strength must be above 0 (keep the picture) and at most 1 (ignore it), "
            f"not {shown(strength)}"
        )
    return share


def check_profile(profile: Any) -> str:
    """Return a profile, or refuse one that does not exist."""
    return choice("profile", profile, PROFILES, kind=GenerationError)


def check_sampler(sampler: Any) -> str:
    """Return a sampler's name, or refuse one that does not exist."""
    return choice("sampler", sampler, SAMPLERS, kind=GenerationError)
