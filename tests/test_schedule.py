"""Noise levels: the published ones, diffusers' own, where a picture enters, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vkrt.engines.schedule import PROFILES, SAMPLERS, first_step, make_schedule, sigmas
from vkrt.errors import GenerationError

STEP_COUNTS = (1, 2, 3, 4, 14, 15, 28, 50)


def euler_scheduler(steps: int, shift: float = 3.0) -> Any:
    """Return diffusers' scheduler of "euler", its levels laid out."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    return scheduler


def dpm_scheduler(steps: int, shift: float = 3.0) -> Any:
    """Return diffusers' scheduler of "dpmpp_2m", its levels laid out."""
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift
    )
    scheduler.set_timesteps(steps)
    return scheduler


def test_four_steps_have_the_published_levels() -> None:
    expected = [1, 0.8577, 0.6022, 0.00893, 0]
    np.testing.assert_allclose(sigmas(4), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("steps", STEP_COUNTS)
@pytest.mark.parametrize("shift", [1.0, 3.0, 6.5])
@pytest.mark.parametrize("profile", PROFILES)
def test_euler_levels_are_those_of_diffusers(steps: int, shift: float, profile: str) -> None:
    theirs = euler_scheduler(steps, shift)
    ours = make_schedule(steps, shift, profile, "euler")
    np.testing.assert_allclose(ours.sigmas, theirs.sigmas.numpy(), rtol=1e-6)
    np.testing.assert_allclose(ours.timesteps, theirs.timesteps.numpy(), rtol=1e-6)


@pytest.mark.parametrize("steps", STEP_COUNTS)
@pytest.mark.parametrize("shift", [1.0, 3.0, 6.5])
def test_dpm_levels_of_the_diffusers_profile_are_its_own(steps: int, shift: float) -> None:
    theirs = dpm_scheduler(steps, shift)
    ours = make_schedule(steps, shift, "diffusers", "dpmpp_2m")
    np.testing.assert_array_equal(ours.sigmas, theirs.sigmas.numpy())
    np.testing.assert_array_equal(ours.timesteps, theirs.timesteps.numpy())


def test_reference_has_the_same_levels_for_every_sampler() -> None:
    euler, dpm = (make_schedule(7, profile="reference", sampler=name) for name in SAMPLERS)
    np.testing.assert_array_equal(euler.sigmas, dpm.sigmas)
    np.testing.assert_array_equal(euler.timesteps, dpm.timesteps)


@given(
    st.integers(1, 200), st.floats(0.01, 100), st.sampled_from(PROFILES), st.sampled_from(SAMPLERS)
)
def test_levels_fall_from_at_most_one_to_zero(
    steps: int, shift: float, profile: str, sampler: str
) -> None:
    schedule = make_schedule(steps, shift, profile, sampler)
    assert schedule.steps == steps
    assert (schedule.sigmas.dtype, schedule.timesteps.dtype) == (np.float32, np.float32)
    assert schedule.sigmas[0] <= 1
    assert schedule.sigmas[-1] == 0
    assert (np.diff(schedule.sigmas) < 0).all()
    np.testing.assert_allclose(schedule.timesteps, schedule.sigmas[:-1] * 1000, atol=1)


@pytest.mark.parametrize("steps", [1, 4, 10, 28, 50])
def test_a_picture_enters_where_diffusers_lets_it(steps: int) -> None:
    from diffusers import StableDiffusion3Img2ImgPipeline

    pipeline = SimpleNamespace(scheduler=euler_scheduler(steps))
    for strength in np.arange(1, 101) / 100:
        timesteps, count = StableDiffusion3Img2ImgPipeline.get_timesteps(
            pipeline, steps, float(strength), "cpu"
        )
        start = first_step(steps, float(strength), "diffusers")
        left = make_schedule(steps, profile="diffusers").after(start)
        assert left.steps == count == len(left.sigmas) - 1
        np.testing.assert_allclose(left.timesteps, timesteps.numpy(), rtol=1e-6)


def test_profiles_round_a_strength_differently() -> None:
    assert first_step(10, 0.8, "reference") == 1
    assert first_step(10, 0.8, "diffusers") == 2


@given(st.integers(1, 1000), st.floats(0, 1, exclude_min=True), st.sampled_from(PROFILES))
def test_some_step_is_always_left(steps: int, strength: float, profile: str) -> None:
    assert 0 <= first_step(steps, strength, profile) < steps
    assert first_step(steps, 1.0, profile) == 0


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.5, True, "4", None])
def test_impossible_steps_are_refused(steps: Any) -> None:
    with pytest.raises(GenerationError, match="steps must be a whole number from 1 to 1000"):
        make_schedule(steps)
    with pytest.raises(GenerationError, match="steps must be"):
        first_step(steps, 0.5)


@pytest.mark.parametrize("shift", [0, -3.0, float("nan"), float("inf"), 1e9, "3", True])
def test_impossible_shifts_are_refused(shift: Any) -> None:
    with pytest.raises(GenerationError, match="shift must be"):
        make_schedule(4, shift)


@pytest.mark.parametrize("strength", [0, -0.5, 1.01, float("nan"), "1", None, True])
def test_impossible_strengths_are_refused(strength: Any) -> None:
    with pytest.raises(GenerationError, match="strength must be"):
        first_step(4, strength)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(GenerationError, match='"reference" or "diffusers", not \'comfy\''):
        sigmas(4, profile="comfy")
    with pytest.raises(GenerationError, match='"euler" or "dpmpp_2m", not \'heun\''):
        sigmas(4, sampler="heun")
